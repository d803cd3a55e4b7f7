"""Fixtures for all tests."""

import functools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Several workers share the cores: a thread each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import vapoursynth as vs

from tests.cases import CASES, Make, WeightsOf, maker
from tests.clips import clip_path
from tests.filters import Case
from tests.ultra_files import write_base_folder
from vsvsr.filters.registry import FILTERS
from vsvsr.ops import dispatch

# A shell's background job starts with interruptions ignored, and so would every command that the tests start and
# interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def core() -> Iterator[vs.Core]:
    """The core of this process, with its settings put back afterwards."""
    core = vs.core.core
    threads, cache = core.num_threads, core.max_cache_size
    yield core
    core.num_threads, core.max_cache_size = threads, cache


@pytest.fixture(scope="session", autouse=True)
def onnx_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Networks of tests that are written as ONNX do not stay on this machine."""
    folder = tmp_path_factory.mktemp("onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vsvsr.engine.onnx._folder", lambda: folder)
        yield


@pytest.fixture
def gpu_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[tuple[int, int]], None]]:
    """Says that CUDA devices have a compute capability, and that kernels can be launched on them."""

    def pretend(capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(dispatch, "launch_problem", lambda _: None)
        dispatch.kernel_problem.cache_clear()

    yield pretend
    dispatch.kernel_problem.cache_clear()


@pytest.fixture(scope="session")
def weights_of(tmp_path_factory: pytest.TempPathFactory) -> WeightsOf:
    """Weights files, each written at its first use."""
    return functools.cache(lambda name: CASES[name].weights(tmp_path_factory.mktemp("weights")))


@pytest.fixture(scope="session")
def tiny_fastreal(weights_of: WeightsOf) -> Path:
    """A FastReal network small enough for hundreds of frames, whose output depends on its state."""
    return weights_of("FastReal")


@pytest.fixture
def bikes(core: vs.Core) -> vs.VideoNode:
    """120 frames of a real clip, 48x32, RGBS."""
    clip = core.bs.VideoSource(str(clip_path("bikes.mp4")), cachemode=0)
    return core.resize.Bicubic(clip[:120], width=48, height=32, format=vs.RGBS, matrix_in_s="709")


@pytest.fixture(scope="session")
def tiny_mia(weights_of: WeightsOf) -> Path:
    """A MIA network of one block a pass, whose masks keep some pixels and drop others."""
    return weights_of("MIA")


@pytest.fixture(scope="session")
def tiny_ultra(weights_of: WeightsOf) -> Path:
    """An UltraVSR network with active temporal shift."""
    return weights_of("Ultra")


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as Stable Diffusion 2.1-base, with tiny networks."""
    folder = tmp_path_factory.mktemp("base")
    write_base_folder(folder)
    return folder


@pytest.fixture(scope="session")
def skip_weights(weights_of: WeightsOf) -> Path:
    """The published BasicVSR_REDS4 with the estimators that belong to it, in one file."""
    return weights_of("Skip")


@pytest.fixture(params=sorted(FILTERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def case(name: str) -> Case:
    return CASES[name]


@pytest.fixture
def make(name: str, weights_of: WeightsOf) -> Make:
    return maker(name, weights_of(name))
