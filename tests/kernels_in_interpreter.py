"""The kernels in Triton's interpreter, against their PyTorch forms. Run by test_kernels.py with TRITON_INTERPRET=1.

Inputs lie in buffers of NaN and results in buffers of a known number, so that an access outside shows.
"""

import pytest
import torch
from torch import Tensor

MARGIN = 3
CANARY = 12345.0


def framed(x: Tensor, outside: float = float("nan")) -> tuple[Tensor, Tensor]:
    """``x`` as a view with gaps between its rows, in a larger buffer filled with ``outside``; and that buffer."""
    sides = [size + 2 * MARGIN for size in x.shape]
    buffer = torch.full(sides, outside, dtype=x.dtype)
    view = buffer[tuple(slice(MARGIN, -MARGIN) for _ in sides)]
    view.copy_(x)
    return view, buffer


def assert_untouched_outside(buffer: Tensor) -> None:
    inner = buffer.clone()
    inner[tuple(slice(MARGIN, -MARGIN) for _ in buffer.shape)] = CANARY
    assert bool((inner == CANARY).all())


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Buffers of the results that kernels allocate from here on."""
    buffers: list[Tensor] = []

    def empty_like(x: Tensor) -> Tensor:
        view, buffer = framed(torch.full_like(x, CANARY), CANARY)
        buffers.append(buffer)
        return view

    monkeypatch.setattr(torch, "empty_like", empty_like)
    return buffers


def pool(side: int) -> tuple[Tensor, Tensor]:
    """Two blur kernels, and five members as in the paper: blurs, their unsharp masks and the state itself."""
    line = torch.arange(1, side + 1).minimum(torch.arange(side, 0, -1)).float()
    kernels = torch.stack((torch.full((side, side), 1 / side**2), torch.outer(line, line) / line.sum() ** 2))
    return kernels, torch.tensor([[0.0, 1, 0], [2, -1, 0], [0, 0, 1], [2, 0, -1], [1, 0, 0]])


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
        results: list[Tensor],
    ) -> None:
        from vsvsr.ops.hidden_state_attention import (
            fused_hidden_state_attention,
            hidden_state_attention_reference,
            member_filters,
        )

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
        assert_untouched_outside(results[0])

    def test_channels_last_maps_give_the_same_in_their_own_format(self) -> None:
        from vsvsr.ops.hidden_state_attention import (
            fused_hidden_state_attention,
            hidden_state_attention_reference,
            member_filters,
        )

        torch.manual_seed(1)
        query, key, value = torch.randn(3, 1, 6, 7, 11)
        kernels, mix = pool(5)
        expected = hidden_state_attention_reference(query, key, value, kernels, mix)
        last = [x.contiguous(memory_format=torch.channels_last) for x in (query, key, value)]
        result = fused_hidden_state_attention(*last, member_filters(kernels, mix))
        assert result.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(result, expected, atol=2e-6, rtol=2e-6)
