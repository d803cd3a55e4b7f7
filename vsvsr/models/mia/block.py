"""One transformer block of MIA-VSR: masked attention over three frames, then a masked MLP."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsvsr.ops import masked_window_attention

DENSE_ABOVE = 0.75
"""Share of kept positions above which gathering costs more than it saves."""


@dataclass(slots=True)
class BlockMemory:
    """Results of a block at the previous step, per position, without motion compensation; each ``(n, h, w, c)``.

    Attributes:
        tokens: the normalised current frame, which the mask predictor compares with the next one.
        attention: output of the attention after its projection.
        mlp: output of the MLP.
    """

    tokens: Tensor
    attention: Tensor
    mlp: Tensor


class MaskPredictor(nn.Module):
    """Logit of keeping a position, from the change of its tokens (eq. 6)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.rnn = nn.Linear(dim, 1)

    def forward(self, current: Tensor, previous: Tensor) -> Tensor:
        """Tokens ``(..., c)`` of two steps to fp32 logits ``(...)``; fp16 would decide differently."""
        change = (current.detach() - previous).abs_()
        with torch.autocast(change.device.type, enabled=False):
            return F.linear(change.float(), self.rnn.weight.float(), self.rnn.bias.float()).squeeze(-1)


class WindowAttention(nn.Module):
    """Parameters of the attention: projections, relative position bias, mask predictor.

    The table holds a bias for every displacement of a key from its query: ``(3 * 15 * 15, heads)`` for windows of 8.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int, *, masked: bool) -> None:
        super().__init__()
        self.window = window
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty(3 * (2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.predmask = MaskPredictor(dim) if masked else None
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, tokens: Tensor, keep: Tensor | None, kept: Tensor | None, shift: int) -> Tensor:
        """Normalised tokens ``(n, 3, h, w, c)`` to the projected attention of the kept pixels ``(kept, c)``.

        Args:
            tokens: of three frames.
            keep: the mask, None for all pixels.
            kept: its raster indices.
            shift: of the windows.
        """
        rows = self.relative_position_bias_table[self.relative_position_index.flatten()]
        position_bias = rows.view(*self.relative_position_index.shape, self.heads).permute(2, 0, 1)
        attended = masked_window_attention(
            tokens, self.qkv.weight, self.qkv.bias, position_bias, keep, kept, window=self.window, shift=shift
        )
        return self.proj(attended)  # type: ignore[no-any-return]


class MLP(nn.Sequential):
    """``fc2(gelu(fc1(x)))``."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)


class MaskedBlock(nn.Module):
    """``x += mask * attention(norm1(stack)) + (1 - mask) * before``, then the same with the MLP.

    Args:
        dim: channels.
        heads: attention heads.
        window: side of a window.
        shift: roll of the windows, 0 or ``window // 2``.
        masked: whether to have a mask predictor.
        drop_path: probability of dropping a residual branch in training.
    """

    def __init__(self, dim: int, heads: int, window: int, shift: int, *, masked: bool, drop_path: float) -> None:
        super().__init__()
        self.shift = shift
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window, masked=masked)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, 2 * dim)

    def forward(
        self,
        stack: Tensor,
        memory: BlockMemory | None,
        gate: Callable[[Tensor], Tensor],
        *,
        sparse: bool = True,
    ) -> tuple[Tensor, BlockMemory | None]:
        """Refine the last frame of ``stack``.

        Args:
            stack: features ``(n, 3, h, w, c)``: two earlier frames and the current one.
            memory: of the step before, which the call may overwrite; None computes every position.
            gate: logits ``(n, h, w)`` to the mask.
            sparse: leave out what a bool mask does not keep, if that pays. The result is the same up to rounding.

        Returns:
            The current frame's features ``(n, h, w, c)``, and the memory for the next step (None without masks).
        """
        tokens = self.norm1(stack)
        mask = None
        if self.attn.predmask is not None and memory is not None:
            mask = gate(self.attn.predmask(tokens[:, -1], memory.tokens))
            # The sparse form works in place and has no gradient.
            if sparse and mask.dtype == torch.bool and not torch.is_grad_enabled():
                kept = mask.flatten().nonzero().squeeze(1)
                if len(kept) <= DENSE_ABOVE * mask.numel():
                    return self._sparse(stack, tokens, memory, mask, kept), memory
        return self._dense(stack, tokens, memory, mask)

    def _dense(
        self, stack: Tensor, tokens: Tensor, memory: BlockMemory | None, mask: Tensor | None
    ) -> tuple[Tensor, BlockMemory | None]:
        """The definition."""
        x = stack[:, -1]
        attention = self.attn(tokens, None, None, self.shift).view_as(x)
        rate = self.drop_path if self.training else 0.0
        if mask is not None and memory is not None:
            mask = mask[..., None].to(x.dtype)
            attention = mask * attention + (1 - mask) * memory.attention
        x = x + drop_path(attention, rate)
        hidden = drop_path(self.mlp(self.norm2(x)), rate)
        if mask is not None and memory is not None:
            hidden = mask * hidden + (1 - mask) * memory.mlp
        x = x + hidden
        if self.attn.predmask is None:
            return x, None
        return x, BlockMemory(tokens[:, -1].detach().clone(), attention.detach(), hidden.detach())

    def _sparse(self, stack: Tensor, tokens: Tensor, memory: BlockMemory, mask: Tensor, kept: Tensor) -> Tensor:
        """Kept positions only; ``memory`` takes their results, and so holds the composite of new and old."""
        channels = stack.shape[-1]
        memory.attention.view(-1, channels).index_copy_(0, kept, self.attn(tokens, mask, kept, self.shift))
        x = stack[:, -1] + memory.attention
        hidden = self.mlp(self.norm2(x.view(-1, channels).index_select(0, kept)))
        memory.mlp.view(-1, channels).index_copy_(0, kept, hidden)
        memory.tokens.copy_(tokens[:, -1])
        return x.add_(memory.mlp)


def drop_path(branch: Tensor, rate: float) -> Tensor:
    """Stochastic depth: per item of the batch, nothing with probability ``rate``, else ``branch / (1 - rate)``."""
    if rate == 0.0:
        return branch
    keep = 1.0 - rate
    shape = (len(branch),) + (1,) * (branch.dim() - 1)
    return branch / keep * branch.new_empty(shape).bernoulli_(keep)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each query of the current frame and each key of three frames, oldest first.

    ``(2 - d) * (2 window - 1)^2 + (r - r' + window - 1) * (2 window - 1) + (c - c' + window - 1)`` for a query at row
    ``r``, column ``c`` and a key at ``r'``, ``c'`` of frame ``d``: int64 ``(window ** 2, 3 * window ** 2)``.
    """
    span = 2 * window - 1
    row, column = (axis.flatten() for axis in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
    rows = row[:, None] - row + window - 1
    columns = column[:, None] - column + window - 1
    within = rows * span + columns
    return torch.cat([within + age * span**2 for age in (2, 1, 0)], dim=1)
