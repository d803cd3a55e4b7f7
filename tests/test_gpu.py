"""Tests on a real GPU, skipped without one. ``python -m scripts.check_gpu`` runs them and the kernels' own tests."""

import gc
import random
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import vapoursynth as vs
from torch import Tensor

from tests.cases import Make, WeightsOf, maker
from tests.pixels import planes as picture_of
from tests.pixels import play, same
from tests.test_planes import memory
from vsvsr.engine.graph import CudaCapture, Recorder, copied
from vsvsr.engine.planes import Output
from vsvsr.engine.transfer import HostTransfer, transfer
from vsvsr.engine.worker import worker_of
from vsvsr.filters.registry import FILTERS
from vsvsr.models.common import PlainConvolutions, ResidualBlocksWithInputConv
from vsvsr.models.fastreal import COMPACT, FastRealConfig, FastRealVSR
from vsvsr.models.fastreal.flow import LightFlow
from vsvsr.ops.flow_warp import flow_warp, flow_warp_reference, fused_flow_warp
from vsvsr.ops.unpack_planes import fused_unpack_planes, unpack_planes_reference

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TYPES = [torch.float32, torch.float16]
TF32 = 2e-2
"""PyTorch lets cuDNN round the inputs of fp32 convolutions to 10 bits; in a network these errors accumulate."""


@pytest.mark.parametrize("dtype", [*TYPES, torch.bfloat16])
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_flow_warp_gives_the_plain_forms_result(
    dtype: torch.dtype, padding: Literal["zeros", "border"], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 67, 61, 123, device="cuda").to(dtype).contiguous(memory_format=layout)
    flow = torch.randn(2, 2, 61, 123, device="cuda") * 5
    expected = flow_warp_reference(x.float(), flow, padding=padding)
    result = fused_flow_warp(x, flow, padding == "border")
    assert result.stride() == x.stride()
    tolerance = 1e-4 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(result.float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", TYPES)
def test_light_flow_is_that_of_the_plain_forms(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = LightFlow().requires_grad_(False)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    frame = F.interpolate(torch.rand(1, 3, 40, 60), (273, 475), mode="bicubic").clamp(0, 1).to(dtype)
    expected = network(frame, frame.roll(2, -1))
    result = network.cuda()(frame.cuda(), frame.roll(2, -1).cuda())
    torch.testing.assert_close(result.cpu(), expected, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("trunk", [PlainConvolutions, ResidualBlocksWithInputConv])
def test_trunks_are_those_of_the_plain_forms(dtype: torch.dtype, trunk: type[torch.nn.Module]) -> None:
    torch.manual_seed(0)
    network = trunk(3, 32, 4).requires_grad_(False).to(memory_format=torch.channels_last)
    frame = torch.rand(1, 3, 61, 123).contiguous(memory_format=torch.channels_last)
    expected = network(frame)
    result = network.cuda().to(dtype)(frame.cuda().to(dtype))
    torch.testing.assert_close(result.float().cpu(), expected, atol=TF32, rtol=TF32)


@pytest.mark.parametrize("planes", TYPES)
@pytest.mark.parametrize("frame", TYPES)
def test_unpack_planes_gives_the_plain_forms_bits(planes: torch.dtype, frame: torch.dtype) -> None:
    pytest.importorskip("cupy", reason="the plain form runs without CuPy")
    torch.manual_seed(0)
    rows = (torch.randn(3, 270, 512, device="cuda") * 2).to(planes)
    for sample in (0.5, float("nan"), float("inf"), float("-inf")):
        rows[1, 100, 200] = sample
        result, non_finite = fused_unpack_planes(rows, 481, frame)
        expected = unpack_planes_reference(rows, 481, frame)
        assert torch.equal(result, expected[0])
        assert bool(non_finite) == bool(expected[1]) == (sample != 0.5)


@pytest.mark.parametrize("dtype", TYPES)
def test_frames_and_pictures_cross_unchanged(dtype: torch.dtype) -> None:
    staged, direct = transfer(torch.device("cuda", 0), dtype), HostTransfer(dtype)
    frames = []
    for shift in range(6):
        backing, planes = memory(201, 512, dtype)
        backing += shift
        frames.append((staged.read(planes).pixels, direct.read(planes).pixels))
        picture = torch.rand(3, 201, 507, device="cuda").to(dtype)

        def write(channels: Sequence[Tensor], picture: Tensor = picture) -> None:
            for channel, part in zip(channels, picture, strict=True):
                channel.copy_(part)

        output = Output(planes)
        staged.write(write, output, torch.zeros(1, dtype=torch.bool, device="cuda"))
        assert output.arrival is not None
        assert not output.arrival.collect(planes)
        assert torch.equal(backing[..., :507], picture.cpu())
    for result, expected in frames:
        assert torch.equal(result.cpu(), expected)


@pytest.mark.parametrize("config", [COMPACT, FastRealConfig()], ids=["compact", "full size"])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_step_is_captured_and_replays_its_states(
    config: FastRealConfig, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    network = FastRealVSR(config).eval().requires_grad_(False).cuda().to(memory_format=torch.channels_last)
    if dtype == torch.float16:
        network.half()
    record = Recorder(CudaCapture(torch.device("cuda", 0)))
    graph, cold = record(copied(network.propagate)), record(copied(lambda frame: network.propagate(frame, None, None)))
    frames = F.interpolate(torch.rand(4, 3, 24, 40, device="cuda"), (96, 160), mode="bicubic").to(dtype)
    frames = frames.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        first = network.propagate(frames[:1], None, None)
        states, expected = [cold(frames[:1]).clone()], [first]
        for i in range(1, 4):
            states.append(graph(frames[i : i + 1], frames[i - 1 : i], states[-1]).clone())
            expected.append(network.propagate(frames[i : i + 1], frames[i - 1 : i], expected[-1]))
    assert not caplog.messages
    for state, wanted in zip(states, expected, strict=True):
        assert torch.equal(state, wanted)


def test_a_compiled_warp_asks_for_the_kernel() -> None:
    x, flow = torch.randn(1, 8, 40, 56, device="cuda"), torch.randn(1, 2, 40, 56, device="cuda")
    with torch.no_grad():
        compiled = torch.compile(flow_warp, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, flow), flow_warp_reference(x, flow), atol=1e-4, rtol=1e-4)


class TestFilters:
    @pytest.fixture(params=sorted(FILTERS))
    def name(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def make(self, name: str, weights_of: WeightsOf) -> Make:
        return maker(name, weights_of(name))

    @pytest.mark.parametrize("video_format", [vs.RGBS, vs.RGBH])
    def test_random_requests_give_the_pixels_of_linear_playback(
        self, make: Make, bikes: vs.VideoNode, video_format: int
    ) -> None:
        clip = bikes[:16].resize.Point(format=video_format)
        linear = play(make(clip, device_index=0))
        numbers = random.Random(0).choices(range(16), k=40)
        assert same(play(make(clip, device_index=0), numbers, in_flight=8), linear)

    def test_pictures_are_those_of_the_cpu_up_to_rounding(self, make: Make, bikes: vs.VideoNode) -> None:
        with make(bikes[:6], device_index=0).get_frame(5) as gpu, make(bikes[:6]).get_frame(5) as cpu:
            difference = np.abs(picture_of(gpu) - picture_of(cpu))
        # Where rounding changes the decision of a mask or a tile, a few pixels differ more.
        assert np.quantile(difference, 0.98) < TF32

    def test_memory_is_returned_when_the_filter_is_freed(self, make: Make, bikes: vs.VideoNode) -> None:
        def once() -> int:
            make(bikes[:4], device_index=0).get_frame(3).close()
            gc.collect()
            worker_of(torch.device("cuda", 0)).run(lambda: None)  # runs after the filter's remaining work there
            return torch.cuda.memory_reserved(0)

        once()
        early = once()
        assert early < 100_000_000
        for _ in range(3):
            assert once() <= early


def test_tensors_of_another_device_get_their_kernels_there() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second CUDA device")
    device = torch.device("cuda", 1)

    def warp() -> Tensor:
        torch.manual_seed(0)
        x, flow = torch.randn(1, 8, 40, 56, device=device), torch.randn(1, 2, 40, 56, device=device)
        return (fused_flow_warp(x, flow, False) - flow_warp_reference(x, flow)).abs().max().cpu()

    assert float(worker_of(device).run(warp)) < 1e-4
