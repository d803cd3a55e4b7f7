"""The kernels in Triton's interpreter, against their PyTorch forms. Run by test_kernels.py with TRITON_INTERPRET=1.

Inputs lie in buffers of NaN and results in buffers of a known number, so that an out-of-bounds access shows.
"""

import importlib
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from vsvsr.triton_kernels.probe import answer

from vsvsr.models.common import ResidualBlocksWithInputConv
from vsvsr.models.fastreal import FastRealVSR
from vsvsr.models.fastreal.config import COMPACT
from vsvsr.models.mia import MIAVSR
from vsvsr.models.mia.block import MaskedBlock
from vsvsr.models.mia.gates import MaskSite
from vsvsr.models.skipvsr import SkipVSR
from vsvsr.models.skipvsr.gate import GatedTrunk, Tally, TileGate
from vsvsr.ops import convolve, flow_warp, grey_pyramid, hidden_state_attention
from vsvsr.ops.block_skip import BlockWeights, block_skip_reference, fused_block_residual, fused_choose_tiles
from vsvsr.ops.convolution import fused_finish
from vsvsr.ops.flow_correction import flow_correction_reference, fused_flow_correction
from vsvsr.ops.flow_warp import flow_warp_reference, fused_flow_warp
from vsvsr.ops.grey_pyramid import grey_pyramid_reference
from vsvsr.ops.hidden_state_attention import (
    fused_hidden_state_attention,
    hidden_state_attention_reference,
    member_filters,
)
from vsvsr.ops.lucas_kanade import fused_lucas_kanade, lucas_kanade_reference
from vsvsr.ops.masked_window_attention import (
    fused_masked_window_attention,
    kept_positions,
    masked_window_attention_reference,
)

type Compare = Callable[..., None]
"""Takes a network and the names of the operations that use their kernels."""

MARGIN = 3
CANARY = 12345.0


def framed(x: Tensor, outside: float = float("nan"), *, dims: int = 4) -> tuple[Tensor, Tensor]:
    """``x`` as a view in a larger buffer filled with ``outside``, and that buffer.

    Margins lie on both sides of the first ``dims`` dimensions. With one the view is contiguous, else it has gaps.
    """
    inside = tuple(slice(MARGIN, MARGIN + size) for size in x.shape[:dims])
    buffer = torch.full([size + 2 * MARGIN for size in x.shape[:dims]] + list(x.shape[dims:]), outside, dtype=x.dtype)
    buffer[inside] = x
    return buffer[inside], buffer


def assert_untouched_outside(view: Tensor, buffer: Tensor) -> None:
    view.fill_(CANARY)
    assert bool((buffer == CANARY).all())


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """The results that kernels allocate while the fixture is active, with their buffers."""
    allocated: list[tuple[Tensor, Tensor]] = []

    def empty_like(x: Tensor) -> Tensor:
        allocated.append(framed(torch.full(x.shape, CANARY, dtype=x.dtype), CANARY, dims=4 if x.dim() == 4 else 1))
        return allocated[-1][0]

    monkeypatch.setattr(torch, "empty_like", empty_like)
    return allocated


def pool(side: int) -> tuple[Tensor, Tensor]:
    """Two blur kernels, and five members as in the paper: blurs, their unsharp masks and the state itself."""
    line = torch.arange(1, side + 1).minimum(torch.arange(side, 0, -1)).float()
    kernels = torch.stack((torch.full((side, side), 1 / side**2), torch.outer(line, line) / line.sum() ** 2))
    return kernels, torch.tensor([[0.0, 1, 0], [2, -1, 0], [0, 0, 1], [2, 0, -1], [1, 0, 0]])


def test_the_probe_answers() -> None:
    assert answer(torch.device("cpu")) == 42


class TestHiddenStateAttention:
    @pytest.mark.parametrize(
        ("shape", "key_channels", "side", "dtype", "tolerance"),
        [
            ((2, 5, 9, 35), 7, 5, torch.float32, 2e-6),
            ((1, 40, 5, 33), 33, 3, torch.float32, 5e-6),
            ((1, 16, 1, 1), 16, 5, torch.float32, 2e-6),
            ((1, 8, 6, 17), 16, 5, torch.float16, 4e-3),
        ],
        ids=["odd sizes", "several blocks of channels", "one pixel", "half precision"],
    )
    def test_the_kernel_gives_the_plain_forms_result(
        self,
        shape: tuple[int, int, int, int],
        key_channels: int,
        side: int,
        dtype: torch.dtype,
        tolerance: float,
        results: list[tuple[Tensor, Tensor]],
    ) -> None:
        torch.manual_seed(0)
        n, _, height, width = shape
        query, key = torch.randn(2, n, key_channels, height, width).to(dtype)
        value = torch.randn(shape).to(dtype)
        kernels, mix = pool(side)
        # In fp32: the plain form rounds every filtered copy to the type of the maps, the kernel rounds once.
        expected = hidden_state_attention_reference(query.float(), key.float(), value.float(), kernels, mix)
        views = [framed(x)[0] for x in (query, key, value)]
        result = fused_hidden_state_attention(*views, member_filters(kernels, mix))
        torch.testing.assert_close(result.float(), expected, atol=tolerance, rtol=tolerance)
        assert len(results) == 1
        assert_untouched_outside(*results[0])

    def test_channels_last_maps_give_the_same_in_their_own_format(self) -> None:
        torch.manual_seed(1)
        query, key, value = torch.randn(3, 1, 6, 7, 11)
        kernels, mix = pool(5)
        expected = hidden_state_attention_reference(query, key, value, kernels, mix)
        last = [x.contiguous(memory_format=torch.channels_last) for x in (query, key, value)]
        result = fused_hidden_state_attention(*last, member_filters(kernels, mix))
        assert result.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(result, expected, atol=2e-6, rtol=2e-6)


@pytest.fixture
def walled_projections(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the fixture is active, results of linear layers lie between NaNs."""
    linear = F.linear

    def walled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = linear(x, weight, bias)
        buffer = torch.full((y.numel() + 128,), float("nan"), dtype=y.dtype)
        return buffer[64:-64].view(y.shape).copy_(y)

    monkeypatch.setattr(F, "linear", walled)


class TestMaskedWindowAttention:
    @pytest.mark.parametrize(
        ("shape", "heads", "window", "dtype", "tolerance"),
        [
            ((1, 3, 11, 13, 12), 2, 8, torch.float32, 5e-6),
            ((2, 3, 5, 8, 20), 1, 4, torch.float32, 5e-6),
            ((1, 3, 8, 9, 12), 2, 8, torch.float16, 5e-3),
        ],
        ids=["odd sizes", "windows of four in a batch", "half precision"],
    )
    @pytest.mark.parametrize("shifted", [False, True], ids=["straight", "shifted"])
    @pytest.mark.parametrize("share", [None, 1.0, 0.3, 0.0], ids=["dense", "all kept", "some kept", "none kept"])
    @pytest.mark.usefixtures("walled_projections")
    def test_the_kernel_gives_the_plain_forms_result(
        self,
        shape: tuple[int, int, int, int, int],
        heads: int,
        window: int,
        dtype: torch.dtype,
        tolerance: float,
        shifted: bool,
        share: float | None,
        results: list[tuple[Tensor, Tensor]],
    ) -> None:
        torch.manual_seed(0)
        channels = shape[-1]
        tokens = torch.randn(shape).to(dtype)
        weight = (torch.randn(3 * channels, channels) / channels**0.5).to(dtype)
        bias = torch.randn(3 * channels).to(dtype)
        # Heads innermost, as the table of a module gives it.
        position_bias = torch.randn(window**2, 3 * window**2, heads).permute(2, 0, 1).to(dtype)
        keep = None if share is None else torch.rand(shape[0], *shape[2:4]) < share
        shift = window // 2 if shifted else 0
        inputs = [x.float() for x in (tokens, weight, bias, position_bias)]
        expected = masked_window_attention_reference(*inputs, keep, window=window, shift=shift)
        result = fused_masked_window_attention(tokens, weight, bias, position_bias, keep, window=window, shift=shift)
        torch.testing.assert_close(result.float(), expected, atol=tolerance, rtol=tolerance)
        assert len(results) == 1
        assert_untouched_outside(*results[0])


class TestBlockSkip:
    @pytest.mark.parametrize(
        ("shape", "tile", "dtype", "tolerance"),
        [
            ((2, 5, 11, 13), 8, torch.float32, 1e-5),
            ((1, 70, 7, 9), 4, torch.float32, 2e-5),
            ((1, 16, 17, 20), 16, torch.float16, 5e-3),
        ],
        ids=["odd sizes in a batch", "several blocks of channels", "half precision"],
    )
    @pytest.mark.parametrize("share", [0.0, 0.4, 1.0], ids=["no tile", "some tiles", "all tiles"])
    def test_the_kernel_gives_the_plain_forms_residual_and_leaves_other_tiles(
        self, shape: tuple[int, int, int, int], tile: int, dtype: torch.dtype, tolerance: float, share: float
    ) -> None:
        torch.manual_seed(0)
        n, channels, height, width = shape
        x, held = torch.randn(2, *shape).to(dtype)
        weights = (torch.randn(2, channels, channels, 3, 3) / (3 * channels**0.5)).to(dtype)
        biases = torch.randn(2, channels).to(dtype)
        block = BlockWeights(weights[0], biases[0], weights[1], biases[1])
        in_fp32 = BlockWeights(weights[0].float(), biases[0].float(), weights[1].float(), biases[1].float())
        active = torch.rand(n, -(-height // tile), -(-width // tile)) < share
        _, expected = block_skip_reference(x.float(), held.float(), in_fp32, active, tile)
        pixels, _ = framed(x.permute(0, 2, 3, 1).reshape(-1, channels), dims=1)
        residual, buffer = framed(held.permute(0, 2, 3, 1).reshape(-1, channels), CANARY, dims=1)
        tiles = active.flatten().to(torch.int8).argsort(descending=True, stable=True), active.sum()[None]
        first, second = block.by_tap
        fused_block_residual(pixels, residual, first, block.bias1, second, block.bias2, *tiles, height, width, tile)
        result = residual.view(n, height, width, channels).permute(0, 3, 1, 2).float()
        torch.testing.assert_close(result, expected, atol=tolerance, rtol=tolerance)
        skipped = ~active.repeat_interleave(tile, 1).repeat_interleave(tile, 2)[:, :height, :width]
        assert torch.equal(result.permute(0, 2, 3, 1)[skipped], held.float().permute(0, 2, 3, 1)[skipped])
        assert_untouched_outside(residual, buffer)

    @pytest.mark.parametrize(
        ("tiles", "share"), [(1, 0.0), (1, 1.0), (700, 0.3), (700, 0.0), (2500, 0.6), (2500, 0.95)]
    )
    def test_the_kernel_lists_the_tiles_that_the_host_would_list(self, tiles: int, share: float) -> None:
        torch.manual_seed(0)
        active = torch.rand(tiles) < share
        enough = round(0.9 * tiles)
        wanted = active.clone() if int(active.sum()) < enough else torch.ones_like(active)
        numbers, count = fused_choose_tiles(active, enough)
        assert int(count) == int(wanted.sum())
        assert torch.equal(numbers[: int(count)], wanted.nonzero()[:, 0])
        assert torch.equal(active, wanted)

    def test_a_held_residual_with_gaps_gets_the_same(self) -> None:
        torch.manual_seed(0)
        x, held = torch.randn(2, 8 * 8, 16)
        weights = torch.randn(2, 3, 3, 16, 16) / 12, torch.randn(2, 16)
        block = weights[0][0], weights[1][0], weights[0][1], weights[1][1]
        tiles = torch.tensor([0, 3]), torch.tensor([2])
        every_second = torch.full((2 * 8 * 8, 32), CANARY)
        gaps = every_second[::2, ::2]
        gaps.copy_(held)
        fused_block_residual(x, held, *block, *tiles, 8, 8, 4)
        fused_block_residual(x.t().contiguous().t(), gaps, *block, *tiles, 8, 8, 4)
        assert torch.equal(gaps, held)
        assert bool((every_second[1::2] == CANARY).all())


class TestFlowWarp:
    @pytest.mark.parametrize("padding", ["zeros", "border"])
    @pytest.mark.parametrize(
        ("shape", "dtype", "tolerance"),
        [
            ((2, 5, 9, 35), torch.float32, 2e-5),
            ((1, 40, 7, 11), torch.float32, 2e-5),
            ((2, 1, 1, 1), torch.float32, 2e-5),
            ((1, 16, 6, 17), torch.float16, 2e-3),
        ],
        ids=["odd sizes", "several blocks of channels", "one pixel", "half precision"],
    )
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planar", "channels last"])
    def test_the_kernel_gives_the_plain_forms_result(
        self,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        tolerance: float,
        padding: Literal["zeros", "border"],
        layout: torch.memory_format,
        results: list[tuple[Tensor, Tensor]],
    ) -> None:
        torch.manual_seed(0)
        n, _, height, width = shape
        x = torch.randn(shape).to(dtype)
        flow = torch.randn(n, 2, height, width) * 3
        flow[0, :, 0, 0] = 1e12
        flow[-1, :, -1, -1] = torch.tensor([-1e12, 0.5])
        flow[0, :, height // 2] = 0.0
        expected = flow_warp_reference(x.float(), flow, padding=padding)
        source = framed(x)[0] if layout == torch.contiguous_format else x.contiguous(memory_format=layout)
        result = fused_flow_warp(source, framed(flow)[0], padding == "border")
        torch.testing.assert_close(result.float(), expected, atol=tolerance, rtol=tolerance)
        assert len(results) == 1
        assert_untouched_outside(*results[0])

    @pytest.mark.parametrize("padding", ["zeros", "border"])
    def test_a_flow_that_is_not_finite_gives_what_the_plain_form_gives(
        self, padding: Literal["zeros", "border"]
    ) -> None:
        torch.manual_seed(0)
        x, flow = torch.rand(1, 3, 5, 7) + 1, torch.zeros(1, 2, 5, 7)
        for column, displacement in enumerate((float("nan"), float("inf"), float("-inf"))):
            flow[0, 0, 1, column] = flow[0, 1, 3, column] = displacement
        flow[0, :, 4, 4] = float("nan")
        expected = flow_warp_reference(x, flow, padding=padding)
        torch.testing.assert_close(fused_flow_warp(x, flow, padding == "border"), expected, atol=2e-5, rtol=2e-5)


@pytest.fixture
def allocations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Like ``results``, for kernels that allocate by shape; results stay contiguous."""
    allocated: list[tuple[Tensor, Tensor]] = []
    empty = torch.empty

    def framed_empty(shape: int | tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        size = (shape,) if isinstance(shape, int) else shape
        allocated.append(framed(torch.full(size, CANARY, dtype=dtype), CANARY, dims=1))
        return allocated[-1][0]

    for name in ("grey_pyramid", "lucas_kanade", "flow_correction"):
        kernel = importlib.import_module(f"vsvsr.triton_kernels.{name}")
        monkeypatch.setattr(kernel, "torch", SimpleNamespace(empty=framed_empty, float32=torch.float32))
    assert torch.empty is empty
    return allocated


def walled(x: Tensor) -> Tensor:
    """``x``, contiguous, between NaNs."""
    return framed(x, dims=1)[0]


def moving_pictures(n: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Smooth grey pictures ``(n, 1, height, width)``, and the same a pixel to the left with noise."""
    coarse = torch.rand(n, 1, height // 4 + 2, width // 4 + 2)
    picture = F.interpolate(coarse, (height, width), mode="bicubic")
    return picture, picture.roll(1, -1) + 0.02 * torch.rand_like(picture)


class TestLightFlow:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planar", "channels last"])
    @pytest.mark.parametrize(("size", "levels"), [((37, 51), 5), ((6, 9), 3), ((8, 16), 1)])
    def test_the_pyramids_are_those_of_the_plain_form(
        self,
        dtype: torch.dtype,
        layout: torch.memory_format,
        size: tuple[int, int],
        levels: int,
        allocations: list[tuple[Tensor, Tensor]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        torch.manual_seed(0)
        frames = torch.rand(2, 2, 3, *size).to(dtype)
        expected = grey_pyramid_reference(*frames, levels)
        if layout == torch.contiguous_format:
            reference, support = (framed(frame)[0] for frame in frames)
        else:
            reference, support = (frame.contiguous(memory_format=layout) for frame in frames)
        monkeypatch.setattr(sys.modules["vsvsr.ops.grey_pyramid"], "runs_kernels", lambda *tensors: True)
        result = grey_pyramid(reference, support, levels)
        for level, wanted in zip(result, expected, strict=True):
            for picture, plain in zip(level, wanted, strict=True):
                torch.testing.assert_close(picture, plain, atol=1e-6, rtol=1e-6)
        assert len(allocations) == 1
        assert_untouched_outside(*allocations[0])

    @pytest.mark.parametrize("size", [(9, 35), (30, 22), (1, 1), (50, 3)])
    @pytest.mark.parametrize("start", ["no motion", "motion", "half the size"])
    def test_a_step_gives_the_plain_forms_flow(
        self, size: tuple[int, int], start: str, allocations: list[tuple[Tensor, Tensor]]
    ) -> None:
        torch.manual_seed(0)
        if start == "half the size":
            size = (size[0] + size[0] % 2, size[1] + size[1] % 2)
        reference, support = moving_pictures(2, *size)
        flow = None if start == "no motion" else torch.randn(2, 2, *size) * 2
        if flow is not None and start == "half the size":
            flow = flow[..., : size[0] // 2, : size[1] // 2].contiguous()
        if flow is not None:
            flow[0, :, 0, 0] = 1e9
        expected = lucas_kanade_reference(reference, support, flow)
        result = fused_lucas_kanade(walled(reference), walled(support), None if flow is None else walled(flow))
        torch.testing.assert_close(result, expected, atol=2e-5, rtol=2e-5)
        assert len(allocations) == 1
        assert_untouched_outside(*allocations[0])

    @pytest.mark.parametrize("size", [(9, 35), (1, 1)])
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planar", "channels last"])
    def test_a_correction_gives_the_plain_forms_flow_in_three_launches(
        self, size: tuple[int, int], layout: torch.memory_format, allocations: list[tuple[Tensor, Tensor]]
    ) -> None:
        torch.manual_seed(0)
        layers = FastRealVSR(COMPACT).flow_estimator.correction
        for parameter in layers.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        layers.to(memory_format=layout)
        convolutions = [layers[i] for i in (0, 2, 4)]
        reference, support = moving_pictures(2, *size)
        flow = torch.randn(2, 2, *size) * 2
        expected = flow_correction_reference(reference, support, flow, layers)
        given = (walled(x) for x in (reference, support, flow))
        result = fused_flow_correction(*given, [c.weight for c in convolutions], [c.bias for c in convolutions])
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
        assert len(allocations) == 3
        for allocation in allocations:
            assert_untouched_outside(*allocation)


class TestFinishConvolution:
    @pytest.mark.parametrize("slope", [1.0, 0.0, 0.1, "slopes"])
    @pytest.mark.parametrize("adds", [False, True])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 2e-3)])
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planar", "channels last"])
    def test_the_kernel_gives_the_plain_forms_result(
        self, slope: float | str, adds: bool, dtype: torch.dtype, tolerance: float, layout: torch.memory_format
    ) -> None:
        torch.manual_seed(0)
        maps, residual = torch.randn(2, 2, 5, 9, 35).to(dtype)
        bias, slopes = torch.randn(2, 5).to(dtype)
        maps[0, 0, 0, 0] = float("-inf")
        slopes = slopes if slope == "slopes" else None
        conv = torch.nn.Conv2d(5, 5, 1)
        conv.weight.data, conv.bias.data = torch.eye(5)[..., None, None], bias.float()
        factor = slope if isinstance(slope, float) else slopes.float()
        # Minus infinity times the zeros of the matrix is no number.
        finite = maps.float().clamp(min=-1e30)
        expected = convolve(finite, conv, slope=factor, residual=residual.float() if adds else None)
        # Whatever the layout of the maps, the residual has the other's.
        given, buffer = framed(maps.contiguous(memory_format=layout).as_strided((maps.numel(),), (1,)), CANARY, dims=1)
        given = given.as_strided(maps.shape, maps.contiguous(memory_format=layout).stride(), MARGIN)
        fused_finish(given, bias, slope if slopes is None else 1.0, slopes, residual if adds else None)
        within = maps.isfinite()
        torch.testing.assert_close(given.float()[within], expected[within], atol=tolerance, rtol=tolerance)
        lowest = 0.0 if slope == 0.0 else float("-inf")
        if slopes is None or float(slopes[0]) > 0:
            assert float(given[0, 0, 0, 0]) == lowest + (float(residual[0, 0, 0, 0]) if adds else 0.0)
        assert bool((buffer[:MARGIN] == CANARY).all())
        assert bool((buffer[-MARGIN:] == CANARY).all())


def hidden_state_attention_arguments() -> tuple[Tensor, ...]:
    query, key = torch.randn(2, 1, 4, 5, 6)
    return query, key, torch.randn(1, 3, 5, 6), member_filters(*pool(3))


def masked_window_attention_arguments() -> tuple[Tensor | int, ...]:
    keep = torch.rand(1, 5, 6) < 0.5
    rows = (keep.flatten().cumsum(0) - 1).to(torch.int32)
    query, key_value = torch.randn(int(keep.sum()), 8), torch.randn(1, 3, 5, 6, 16)
    return query, key_value, torch.randn(16), torch.randn(2, 16, 48), *kept_positions(keep, 4, 2), rows, 4, 2


def block_residual_arguments() -> tuple[Tensor | int, ...]:
    pixels, held = torch.randn(2, 5 * 6, 4)
    weights = torch.randn(3, 3, 4, 4), torch.randn(4), torch.randn(3, 3, 4, 4), torch.randn(4)
    return pixels, held, *weights, torch.tensor([0, 3]), torch.tensor([2]), 5, 6, 4


def grey_pyramid_arguments() -> tuple[Tensor | int, ...]:
    return *torch.rand(2, 1, 3, 9, 11), 3


def lucas_kanade_arguments() -> tuple[Tensor | None, ...]:
    return *torch.rand(2, 1, 1, 8, 12), torch.rand(1, 2, 4, 6)


def flow_correction_arguments() -> tuple[Tensor | list[Tensor], ...]:
    weights = [torch.randn(16, 5, 3, 3), torch.randn(16, 16, 3, 3), torch.randn(2, 16, 3, 3)]
    return *torch.rand(2, 1, 1, 8, 12), torch.rand(1, 2, 8, 12), weights, [torch.randn(len(x)) for x in weights]


def finish_convolution_arguments() -> tuple[Tensor | float | None, ...]:
    return torch.randn(1, 3, 5, 6), torch.randn(3), 0.1, None, torch.randn(1, 3, 5, 6)


def flow_warp_arguments() -> tuple[Tensor | bool, ...]:
    return torch.randn(1, 3, 5, 6).contiguous(memory_format=torch.channels_last), torch.randn(1, 2, 5, 6), True


class TestOperators:
    """What ``torch.compile`` and export need of a custom operator."""

    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            ("hidden_state_attention", hidden_state_attention_arguments),
            ("masked_window_attention", masked_window_attention_arguments),
            ("block_residual", block_residual_arguments),
            ("choose_tiles", lambda: (torch.rand(9) < 0.5, 0)),
            ("flow_warp", flow_warp_arguments),
            ("grey_pyramid", grey_pyramid_arguments),
            ("lucas_kanade", lucas_kanade_arguments),
            ("flow_correction", flow_correction_arguments),
            ("finish_convolution", finish_convolution_arguments),
        ],
    )
    def test_schema_fake_form_and_dispatch_are_right(self, name: str, arguments: Callable[[], tuple[object]]) -> None:
        torch.manual_seed(0)
        checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
        outcome = torch.library.opcheck(getattr(torch.ops.vsvsr, name).default, arguments(), test_utils=checks)
        assert set(outcome.values()) == {"SUCCESS"}

    class Warped(torch.nn.Module):
        """Two operators in a row, dispatch included."""

        def __init__(self) -> None:
            super().__init__()
            self.kernels, self.mix = pool(3)

        def forward(self, query: Tensor, hidden: Tensor, flow: Tensor) -> Tensor:
            state = flow_warp(hidden, flow)
            return hidden_state_attention(query, state, state, self.kernels, self.mix)

    @pytest.fixture
    def example(self, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, ...]:
        for operation in ("flow_warp", "hidden_state_attention"):
            monkeypatch.setattr(sys.modules[f"vsvsr.ops.{operation}"], "runs_kernels", lambda *tensors: True)
        torch.manual_seed(0)
        query, hidden = torch.randn(2, 1, 4, 5, 6)
        return query, hidden, torch.randn(1, 2, 5, 6)

    def test_a_compiled_module_gives_the_same_in_one_graph(self, example: tuple[Tensor, ...]) -> None:
        module = self.Warped()
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*example), module(*example))

    def test_an_exported_module_holds_the_operators(self, example: tuple[Tensor, ...]) -> None:
        exported = torch.export.export(self.Warped(), example)
        called = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
        assert {"vsvsr.flow_warp.default", "vsvsr.hidden_state_attention.default"} <= called
        torch.testing.assert_close(exported.module()(*example), self.Warped()(*example))


class TestNetworks:
    """Networks and their parts with and without kernels, dispatch included."""

    @pytest.fixture
    def compare(self, monkeypatch: pytest.MonkeyPatch) -> Compare:
        def run(network: Callable[[], Tensor], *operations: str) -> None:
            with torch.no_grad():
                expected = network()
                asked = set()
                for operation in operations:

                    def always(*tensors: Tensor, operation: str = operation) -> bool:
                        asked.add(operation)
                        return True

                    monkeypatch.setattr(sys.modules[f"vsvsr.ops.{operation}"], "runs_kernels", always)
                result = network()
            assert asked == set(operations)
            assert expected.std() > 0.01
            torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)

        return run

    def test_compact_fastreal_gives_the_same_picture(self, compare: Compare) -> None:
        torch.manual_seed(0)
        network = FastRealVSR(COMPACT).eval()
        for name, parameter in network.named_parameters():
            if name.endswith(("q.weight", "k.weight")):
                torch.nn.init.normal_(parameter, std=0.2)
        clip = torch.rand(1, 3, 3, 16, 19)
        for parameter in network.flow_estimator.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        light_flow = ("grey_pyramid", "lucas_kanade", "flow_correction")
        compare(lambda: network(clip), "hidden_state_attention", "flow_warp", "convolution", *light_flow)

    def test_small_mia_gives_the_same_picture(self, compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
        # One program a window, because the interpreter's time grows with the number of programs.
        monkeypatch.setattr("vsvsr.triton_kernels.masked_window_attention.blocks", lambda dtype: (64, 8))
        torch.manual_seed(0)
        network = MIAVSR(12, (1,), (1,), 8).eval()
        for name, parameter in network.named_parameters():
            if "attn" in name or "mlp" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        clip = torch.rand(1, 2, 3, 16, 17)

        def gate(site: MaskSite, logits: Tensor) -> Tensor:
            # Not by the logits: rounding may change a decision at the threshold.
            return (torch.arange(logits.numel()) // 5 % 4 == 0).view_as(logits)

        compare(lambda: network(clip, gate=gate), "masked_window_attention", "flow_warp")

    def test_small_skip_gives_the_same_picture(self, compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
        # Large programs, because the interpreter's time grows with their number.
        for name in ("flow_warp", "block_skip"):
            kernel = importlib.import_module(f"vsvsr.triton_kernels.{name}")
            monkeypatch.setattr(kernel, "blocks", lambda *x, blocks=kernel.blocks: {**blocks(*x), "PIXELS": 512})
        torch.manual_seed(0)
        network = SkipVSR(threshold=0.5).eval().requires_grad_(False)
        network.backward_trunk = ResidualBlocksWithInputConv(3 + 64, 64, 1)
        network.forward_trunk = ResidualBlocksWithInputConv(3 + 64, 64, 1)
        for parameter in network.spynet.parameters():
            torch.nn.init.normal_(parameter, std=0.02 if parameter.dim() > 1 else 0.1)
        for estimator in (network.estimator_backward, network.estimator_forward):
            torch.nn.init.constant_(estimator.weight, -1.0)
            torch.nn.init.constant_(estimator.bias, 1.0)
        frames = torch.rand(3, 64, 64).repeat(2, 1, 1, 1)
        frames[1, :, :24, :40] = torch.rand(3, 24, 40)

        def picture() -> Tensor:
            network.tally = Tally()
            result = torch.stack(list(network.upscale(list(frames), range(2))))
            assert 32 < network.tally.executed < 64  # the first frame of each pass runs everywhere
            return result

        compare(picture, "block_skip", "flow_warp")

    @pytest.mark.parametrize("skipped", [1, 6])
    def test_a_gates_reference_is_the_input_that_gave_the_residual(self, compare: Compare, skipped: int) -> None:
        # One of nine tiles to skip: all run, because that costs no more.
        class Gate(TileGate):
            calls = 0

            def __call__(self, samples: Tensor, reference: Tensor) -> Tensor:
                self.calls += 1
                active = torch.ones(1, 9, dtype=torch.bool)
                if self.calls % 2 == 0:  # the others are about the entry
                    active[:, :skipped] = False
                return active.view(1, 3, 3)

        torch.manual_seed(0)
        trunk = ResidualBlocksWithInputConv(3, 16, 1).eval().requires_grad_(False)
        frames = torch.rand(2, 1, 3, 48, 48)

        def reference() -> Tensor:
            gated = GatedTrunk(trunk, Gate(torch.nn.Linear(16, 1), 0.5, 16), hold=True, stride=1, tally=Tally())
            for frame in frames:
                gated(frame)
            return gated._references[0]

        compare(reference, "block_skip")

    def test_a_masked_block_gives_the_same_features(self, compare: Compare) -> None:
        torch.manual_seed(0)
        block = MaskedBlock(12, 2, 8, 4, masked=True, drop_path=0.0)
        torch.nn.init.normal_(block.attn.relative_position_bias_table)
        first, second = torch.randn(2, 1, 3, 11, 13, 12)

        def features() -> Tensor:
            dense, memory = block(first, None, lambda logits: logits > 0)
            sparse, _ = block(second, memory, lambda logits: logits > logits.median())
            return torch.stack((dense, sparse))

        compare(features, "masked_window_attention")
