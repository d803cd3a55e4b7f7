"""How the suites that run over every registered filter make each of them small and quick."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import vapoursynth as vs

from tests.filters import Case
from vsvsr.filters.registry import FILTERS

CASES: dict[str, Case] = {name: import_module(f"tests.filters.{name.lower()}").CASE for name in FILTERS}

type Make = Callable[..., vs.VideoNode]
type GPUOf = Callable[[tuple[int, int]], None]
"""Pretends that CUDA devices have a compute capability and launch kernels."""

type WeightsOf = Callable[[str], Path]
"""The weights file of a filter's case, by the filter's name."""


def maker(name: str, weights: Path) -> Make:
    """``make(clip, **more)`` gives the filter's output."""

    def make(clip: vs.VideoNode, **more: object) -> vs.VideoNode:
        function = getattr(vs.core.vsvsr, name)
        return function(clip, **{"model_path": str(weights), "device_index": -1, **CASES[name].arguments, **more})

    return make
