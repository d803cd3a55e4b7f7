"""Multi-frame self-attention (Shi et al., "Rethinking Alignment in Video SR", 2022), which MIA-VSR is compared with."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vsvsr.models.mia.block import MLP, drop_path
from vsvsr.ops.masked_window_attention import shifted_bias, window_table

_FRAMES = 3


def joint_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of positions of three frames, oldest first.

    ``(d - d' + 2) * (2 window - 1)^2 + (r - r' + window - 1) * (2 window - 1) + (c - c' + window - 1)`` for a query in
    frame ``d`` at row ``r``, column ``c`` and a key at ``d'``, ``r'``, ``c'``: int64
    ``(3 * window ** 2, 3 * window ** 2)``.
    """
    span = 2 * window - 1
    axes = (torch.arange(_FRAMES), torch.arange(window), torch.arange(window))
    frame, row, column = (axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij"))
    frames = frame[:, None] - frame + _FRAMES - 1
    rows, columns = (axis[:, None] - axis + window - 1 for axis in (row, column))
    return frames * span**2 + rows * span + columns


class JointAttention(nn.Module):
    """Parameters of the attention; the table holds a bias for every displacement: ``(5 * 15 * 15, heads)`` for 8."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        rows = (2 * _FRAMES - 1) * (2 * window - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, heads))
        self.register_buffer("relative_position_index", joint_position_index(window), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, tokens: Tensor, shift: int) -> Tensor:
        """Attention of the pixels of all frames to each other, window by window: ``(n, 3, h, w, c)`` to the same.

        Frames are padded with zero tokens to multiples of the window, which serve as keys and values; windows are
        rolled by ``-shift``, with -100 between pixels from opposite borders.
        """
        batch, frames, height, width, channels = tokens.shape
        rows = self.relative_position_bias_table[self.relative_position_index]
        position_bias = rearrange(rows, "(frames queries) keys heads -> frames heads queries keys", frames=frames)
        biases = torch.cat([shifted_bias(bias, self.window, shift) for bias in position_bias], dim=2)
        table, kinds = window_table(height, width, self.window, shift, tokens.device)
        # The row behind the pixels is for padding.
        pixels = F.pad(tokens.flatten(2, 3), (0, 0, 0, 1))[:, :, table.flatten()]
        windows = rearrange(pixels, "b frames (n p) c -> b n (frames p) c", n=len(table))
        parts = rearrange(
            self.qkv(windows), "b n keys (part heads d) -> part b n heads keys d", part=3, heads=self.heads
        )
        query, key, value = parts.unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=biases[kinds].to(parts.dtype))
        attended = rearrange(attended, "b n heads (frames p) d -> b frames (n p) (heads d)", frames=frames)
        result = attended.new_zeros(batch, frames, height * width + 1, channels)
        result = result.index_copy(2, table.flatten(), attended)[:, :, :-1]
        return self.proj(result).view(tokens.shape)  # type: ignore[no-any-return]


class MultiFrameBlock(nn.Module):
    """``x += attention(norm1(x))``, ``x += mlp(norm2(x))`` for three frames at once (MFSAB).

    Args:
        dim: channels.
        heads: attention heads.
        window: side of a window.
        shift: roll of the windows, 0 or ``window // 2``.
        rate: probability of dropping a residual branch in training.
    """

    def __init__(self, dim: int, heads: int, window: int, shift: int, *, rate: float) -> None:
        super().__init__()
        self.shift, self.rate = shift, rate
        self.norm1 = nn.LayerNorm(dim)
        self.attn = JointAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, 2 * dim)

    def forward(self, stack: Tensor) -> Tensor:
        """``(n, 3, h, w, c)`` to the same."""
        rate = self.rate if self.training else 0.0
        stack = stack + drop_path(self.attn(self.norm1(stack), self.shift), rate)
        return stack + drop_path(self.mlp(self.norm2(stack)), rate)


class MultiFrameGroup(nn.Module):
    """Blocks whose windows lie alternately unshifted and shifted by half a window."""

    def __init__(self, dim: int, heads: int, window: int, rates: Sequence[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            MultiFrameBlock(dim, heads, window, window // 2 * (i % 2), rate=rate) for i, rate in enumerate(rates)
        )


class MultiFrameStage(nn.Module):
    """``x + conv(blocks(x))`` for three frames at once."""

    def __init__(self, dim: int, heads: int, window: int, rates: Sequence[float]) -> None:
        super().__init__()
        self.residual_group = MultiFrameGroup(dim, heads, window, rates)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, stack: Tensor) -> Tensor:
        """``(n, 3, h, w, c)`` to the same."""
        refined = stack
        for block in self.residual_group.blocks:
            refined = block(refined)
        convolved = self.conv(rearrange(refined, "n frames h w c -> (n frames) c h w"))
        result: Tensor = stack + rearrange(convolved, "(n frames) c h w -> n frames h w c", frames=stack.shape[1])
        return result
