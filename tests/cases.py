"""How the conformance suite runs each registered filter: small networks and grids, so that hundreds of frames pass."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import vapoursynth as vs


@dataclass(frozen=True, kw_only=True)
class Case:
    """One filter under test.

    Attributes:
        weights: name of the fixture that gives its weights file.
        arguments: what makes it small, and its restarts frequent.
        restarts: first frames after a restart or at a border of its grid.
        network_runs: how often the network may run in linear playback, extra runs for context included.
        frames: length of the clip.
        cuts: frames that start a scene.
        requests: random ones.
        tries: how often a frame must be asked for at most, until the filter knows which source frame fails.
        long: frames of a clip that is long for it.
        scale: output over source size.
    """

    weights: str
    arguments: dict[str, object]
    restarts: tuple[int, ...]
    network_runs: int
    frames: int = 120
    cuts: tuple[int, ...] = (33, 34, 77)
    requests: int = 300
    tries: int = 1
    long: int = 3000
    scale: int = 4


CASES = {
    "FastReal": Case(
        weights="tiny_fastreal",
        arguments={"segment": 20, "warmup": 5, "state_cache": 1},
        restarts=(20, 40, 60, 80, 100),
        network_runs=120 + 5 * 5,
    ),
    "Skip": Case(
        weights="skip_weights",
        arguments={"length": 6, "overlap": 1, "threshold": 0.5},
        restarts=(6, 12),
        # Context of the chunks from 0, 6, 8, 9, 12 and 15 on, which cuts shorten.
        network_runs=18 + (1 + 1 + 0 + 1 + 1 + 0),
        frames=18,
        cuts=(8, 9, 15),
        requests=30,
        tries=3,
        long=60,
    ),
    "MIA": Case(
        weights="tiny_mia",
        arguments={"length": 8, "overlap": 2, "refresh": 3},
        restarts=(8, 16),
        # Context of the chunks from 0, 8, 13, 14, 16 and 23 on, which cuts shorten.
        network_runs=24 + (2 + 2 + 0 + 2 + 2 + 0),
        frames=24,
        cuts=(13, 14, 23),
        requests=60,
        tries=3,
        long=200,
    ),
    "Ultra": Case(
        weights="tiny_ultra",
        arguments={"length": 8},
        restarts=(8, 16),
        # Context of the chunks from 0, 8, 13, 14, 16 and 23 on: the rest of the scene.
        network_runs=24 + (5 + 8 + 0 + 7 + 2 + 0),
        frames=24,
        cuts=(13, 14, 23),
        requests=24,
        tries=3,
        long=60,
    ),
}

type Make = Callable[..., vs.VideoNode]


def maker(name: str, weights: Path) -> Make:
    """``make(clip, **more)`` gives the filter's output."""

    def make(clip: vs.VideoNode, **more: object) -> vs.VideoNode:
        function = getattr(vs.core.vsvsr, name)
        return function(clip, **{"model_path": str(weights), "device_index": -1, **CASES[name].arguments, **more})

    return make
