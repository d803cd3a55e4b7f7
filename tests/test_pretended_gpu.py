"""The networks on a simulated GPU: fake tensors, whose devices, types and shapes must match.

Nothing is computed.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from scripts.simulated_gpu import SimulatedGPU, move
from tests.cases import CASES, GPUOf, WeightsOf
from vsvsr.engine.chunked import ChunkedNetwork
from vsvsr.engine.memory import feature_budget
from vsvsr.engine.planes import Frame
from vsvsr.engine.tiling import TileGrid
from vsvsr.models.common import Write
from vsvsr.models.common.offload import OffloadBuffer
from vsvsr.models.fastreal import COMPACT, FastRealConfig, FastRealVSR
from vsvsr.models.fastreal.config import PLAIN
from vsvsr.models.mia import MIAVSR
from vsvsr.models.skipvsr import SkipVSR
from vsvsr.ops import pin_convolutions
from vsvsr.ops.convolution import PinnedConv2d

pytest.importorskip("triton", reason="Triton exists for Linux only")

HEIGHT, WIDTH = 70, 90

type Run = Callable[[Any, list[Tensor]], Iterator[Write]]


def fastreal(network: FastRealVSR, frames: list[Tensor]) -> Iterator[Write]:
    hidden = network.propagate(frames[0], None, None)
    hidden = network.propagate(frames[1], frames[0], hidden)
    yield lambda planes: network.render(hidden, frames[1], planes)


def skip(network: SkipVSR, frames: list[Tensor]) -> Iterator[Write]:
    yield from network.chunk(frames, range(1, 3))


def mia(network: MIAVSR, frames: list[Tensor]) -> Iterator[Write]:
    for frame, features in zip(frames[1:], network.features(frames, range(1, 3)), strict=True):
        yield lambda planes, frame=frame, features=features: network.render(features, frame, planes)


TRUNK = {"flow_warp", "finish_convolution"}
LIGHT_FLOW = {"grey_pyramid", "lucas_kanade", "flow_correction"}

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Run, set[str]]] = {
    "FastReal compact": (lambda: FastRealVSR(COMPACT), fastreal, {*LIGHT_FLOW, "hidden_state_attention", *TRUNK}),
    "FastReal plain": (lambda: FastRealVSR(PLAIN), fastreal, {*LIGHT_FLOW, "hidden_state_attention", *TRUNK}),
    "FastReal full size": (lambda: FastRealVSR(FastRealConfig()), fastreal, TRUNK),
    "BasicVSR": (SkipVSR, skip, TRUNK),
    "Skip": (lambda: SkipVSR(threshold=0.5), skip, {"choose_tiles", "block_residual", "flow_warp"}),
    "Skip in patches": (
        lambda: SkipVSR(threshold=0.5, mode="patch"),
        skip,
        {"choose_tiles", "block_residual", "flow_warp"},
    ),
    "MIA without masks": (
        lambda: MIAVSR(12, (2,), (2,), 16, use_mask=False),
        mia,
        {"masked_window_attention", "flow_warp"},
    ),
    "MIA": (lambda: MIAVSR(12, (2,), (2,), 16), mia, {"masked_window_attention", "flow_warp"}),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("answer", [True, False])
def test_a_network_stays_on_its_gpu_and_takes_the_kernels(
    name: str, dtype: torch.dtype, answer: bool, gpu_of: GPUOf
) -> None:
    gpu_of((8, 0))
    make, run, kernels = NETWORKS[name]
    network = make().eval().requires_grad_(False)
    pin_convolutions(network)
    if dtype == torch.float16:
        network.half()
    with FakeTensorMode(), torch.inference_mode(), SimulatedGPU(answer=answer) as asked:
        move(network)
        frames = [torch.empty(1, 3, HEIGHT, WIDTH, dtype=dtype, device="cuda") for _ in range(3)]
        picture = torch.empty(3, 4 * HEIGHT, 4 * WIDTH, dtype=dtype, device="cuda")
        written = [write(picture.unbind()) for write in run(network, frames)]
    assert written
    assert asked.kernels == kernels
    # Nothing is left to the process's settings of cuDNN.
    assert asked.convolutions == {("aten::_convolution", False, True, True, True)}


@pytest.mark.parametrize(
    ("config", "flow", "step"), [(COMPACT, 25, 58), (PLAIN, 25, 68)], ids=["compact", "plain trunk"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_step_with_light_flow_is_few_launches(
    config: FastRealConfig, flow: int, step: int, dtype: torch.dtype, gpu_of: GPUOf
) -> None:
    gpu_of((8, 0))
    network = FastRealVSR(config).eval().requires_grad_(False)
    pin_convolutions(network)
    if dtype == torch.float16:
        network.half()
    with FakeTensorMode(), torch.inference_mode():
        move(network)
        frame, previous = (
            torch.empty(1, 3, 540, 960, dtype=dtype, device="cuda").contiguous(memory_format=torch.channels_last)
            for _ in range(2)
        )
        hidden = torch.empty(1, config.channels, 540, 960, dtype=dtype, device="cuda")
        with SimulatedGPU() as of_flow:
            network.flow(frame, previous)
        with SimulatedGPU() as of_step:
            network.propagate(frame, previous, hidden.contiguous(memory_format=torch.channels_last))
    assert (of_flow.launches, of_step.launches) == (flow, step)


def test_skip_makes_the_host_wait_once_a_frame_and_once_a_chunk(gpu_of: GPUOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the tiles of the head, which are gathered, and for the windows in which flow is estimated."""
    monkeypatch.setattr("vsvsr.models.skipvsr.motion._span", lambda changed, size: slice(0, 64))
    gpu_of((8, 0))
    counted = []
    for frames in (3, 5):
        skip = SkipVSR(threshold=0.5).eval().requires_grad_(False)
        pin_convolutions(skip)
        with FakeTensorMode(), torch.inference_mode(), SimulatedGPU() as simulated:
            move(skip)
            for _ in skip.chunk([torch.empty(1, 3, 96, 128, device="cuda")] * frames, range(frames)):
                pass
        counted.append((simulated.waits, simulated.launches))
    (few_waits, few), (many_waits, many) = counted
    assert (few_waits, many_waits) == (2 + 1, 4 + 1)
    assert (many - few) / 2 <= 1085


def test_mia_makes_the_host_wait_once_a_block(gpu_of: GPUOf) -> None:
    """For the number of kept positions."""
    gpu_of((8, 0))
    counted = []
    for blocks in (1, 3):
        network = MIAVSR(12, (blocks,), (2,), 16).eval().requires_grad_(False)
        pin_convolutions(network)
        with FakeTensorMode(), torch.inference_mode(), SimulatedGPU() as simulated:
            move(network)
            frames = [torch.empty(1, 3, 32, 48, device="cuda")] * 3
            for _ in network.features(frames, range(3)):
                pass
        counted.append(simulated.waits)
    # Two blocks more in each of four modules, which begin to leave out at their second frame.
    assert counted[1] - counted[0] == 2 * 4 * 2


@pytest.mark.parametrize("name", CASES)
def test_every_convolution_of_a_placed_network_is_pinned(name: str, weights_of: WeightsOf) -> None:
    """Those of diffusers included."""
    load = importlib.import_module(f"vsvsr.models.{name.lower().replace('skip', 'skipvsr')}").load
    network = load(weights_of(name)).place(torch.device("cpu"), torch.float32)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) > 5
    assert {type(module) for module in convolutions} == {PinnedConv2d}


FEATURE = 64 * 180 * 320 * 4
"""Bytes of one frame's features of Skip at 320x180 in fp32: 14.7 MB."""


def run_skip(free: int, given: int | None, monkeypatch: pytest.MonkeyPatch, gpu_of: GPUOf) -> tuple[int, int]:
    """Bytes that were moved to the host, and the most that waited on a GPU with ``free`` bytes, for 30 frames."""
    buffers = []

    class Noted(OffloadBuffer):
        def __init__(self, budget: int | None = None) -> None:
            super().__init__(budget)
            buffers.append(self)

    monkeypatch.setattr("vsvsr.engine.chunked.OffloadBuffer", Noted)
    monkeypatch.setattr("vsvsr.engine.chunked.transfer", lambda device, dtype: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 24_000_000_000))
    gpu_of((8, 0))
    device = torch.device("cuda", 0)
    skip = SkipVSR().eval().requires_grad_(False)
    # What is in the features plays no part.
    monkeypatch.setattr(SkipVSR, "step", lambda self, trunk, frame, *rest: frame.new_empty(1, 64, *frame.shape[-2:]))
    with FakeTensorMode(), torch.inference_mode(), SimulatedGPU(answer=True):
        move(skip)
        tiles = TileGrid(320, 180, (0, 0), 16, smallest=16, scale=4)
        network = ChunkedNetwork(skip.chunk, device, torch.float32, tiles, FEATURE)
        network.budget = feature_budget(given, device)
        non_finite = torch.zeros(1, dtype=torch.bool, device=device)
        frames = [Frame(torch.empty(1, 3, 180, 320, device=device), non_finite) for _ in range(30)]
        for _ in network.run(frames, range(30), 0):
            pass
    (buffer,) = buffers
    assert buffer.held == 0
    return buffer.offloaded, buffer.peak


def test_features_stay_on_a_gpu_that_has_room_for_them(monkeypatch: pytest.MonkeyPatch, gpu_of: GPUOf) -> None:
    """442 MB, more than the default ``state_cache``."""
    assert run_skip(8_000_000_000, None, monkeypatch, gpu_of) == (0, 30 * FEATURE)


def test_features_beyond_a_third_of_the_free_memory_wait_on_the_host(
    monkeypatch: pytest.MonkeyPatch, gpu_of: GPUOf
) -> None:
    assert run_skip(600_000_000, None, monkeypatch, gpu_of) == (17 * FEATURE, 13 * FEATURE)


@pytest.mark.parametrize(("megabytes", "kept"), [(0, 0), (100, 6), (1000, 30)])
def test_the_feature_cache_that_is_given_is_kept_whatever_is_free(
    megabytes: int, kept: int, monkeypatch: pytest.MonkeyPatch, gpu_of: GPUOf
) -> None:
    assert run_skip(600_000_000, megabytes, monkeypatch, gpu_of) == ((30 - kept) * FEATURE, kept * FEATURE)


def test_on_the_cpu_there_is_nothing_to_offload() -> None:
    assert feature_budget(None, torch.device("cpu")) is None
    assert feature_budget(0, torch.device("cpu")) is None
