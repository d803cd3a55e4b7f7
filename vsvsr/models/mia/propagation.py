"""A propagation module of MIA-VSR: one frame refined with the help of two earlier ones."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vsvsr.models.mia.block import BlockMemory, MaskedBlock
from vsvsr.models.mia.multi_frame import MultiFrameStage

BlockGate = Callable[[int, Tensor], Tensor]
"""Index of a block in the module and its logits, to the mask."""

DROP_PATH = 0.1
"""Of the last block, in training; the first has none."""


class PatchEmbed(nn.Module):
    """Norm over the channels of the inputs; named after the layer of the checkpoints."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)


class ResidualGroup(nn.Module):
    """Blocks whose windows lie alternately unshifted and shifted by half a window."""

    def __init__(self, dim: int, heads: int, window: int, *, masked: bool, drop_path: Sequence[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            MaskedBlock(dim, heads, window, 0 if i % 2 == 0 else window // 2, masked=masked, drop_path=rate)
            for i, rate in enumerate(drop_path)
        )


class Stage(nn.Module):
    """``x + conv(blocks(x))``."""

    def __init__(self, dim: int, heads: int, window: int, *, masked: bool, drop_path: Sequence[float]) -> None:
        super().__init__()
        self.residual_group = ResidualGroup(dim, heads, window, masked=masked, drop_path=drop_path)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(
        self, x: Tensor, stack: Tensor, memories: list[BlockMemory | None], first: int, gate: BlockGate, sparse: bool
    ) -> Tensor:
        """Refine ``x`` ``(n, h, w, c)``; ``stack`` holds the earlier frames, ``first`` counts the blocks before."""
        refined = x
        for index, block in enumerate(self.residual_group.blocks, first):
            stack = _with_current(stack, refined)
            refined, memories[index] = block(stack, memories[index], _bind(gate, index), sparse=sparse)
        return x + _convolve(self.conv, refined)


class PropagationModule(nn.Module):
    """Four (or as many as given) stages over the current frame; earlier frames only supply keys and values (eq. 4).

    Args:
        dim: channels.
        depths: blocks in each stage.
        heads: attention heads in each stage.
        window: side of a window.
        masked: whether blocks have mask predictors.
        multi_frame: refine all three frames together, as the networks do that MIA-VSR is compared with.
    """

    def __init__(
        self,
        dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        *,
        masked: bool,
        multi_frame: bool = False,
    ) -> None:
        super().__init__()
        self.depths, self.multi_frame = tuple(depths), multi_frame
        rates = iter(torch.linspace(0, DROP_PATH, sum(depths), device="cpu").tolist())
        self.patch_embed = PatchEmbed(dim)
        self.layers = nn.ModuleList()
        for count, depth in zip(heads, depths, strict=True):
            own = list(itertools.islice(rates, depth))
            self.layers.append(
                MultiFrameStage(dim, count, window, own)
                if multi_frame
                else Stage(dim, count, window, masked=masked, drop_path=own)
            )
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        self.apply(_initialise)

    def forward(
        self, frames: Sequence[Tensor], memories: list[BlockMemory | None], gate: BlockGate, *, sparse: bool = True
    ) -> Tensor:
        """Refine the last frame.

        Args:
            frames: features of three frames, aligned, oldest first, each ``(n, h, w, c)``.
            memories: one entry per block, from the step before (None at the first step); replaced by the new ones.
            gate: index of a block and its logits to the mask; not called where there is no memory.
            sparse: see `MaskedBlock.forward`.

        Returns:
            ``(n, h, w, c)``.
        """
        stack = self.patch_embed.norm(torch.stack(tuple(frames), dim=1))
        if self.multi_frame:
            for stage in self.layers:
                stack = stage(stack)
            x = stack[:, -1]
        else:
            x = stack[:, -1].clone()
            first = 0
            for stage, depth in zip(self.layers, self.depths, strict=True):
                x = stage(x, stack, memories, first, gate, sparse)
                first += depth
        return frames[-1] + _convolve(self.conv_after_body, self.norm(x))


def _initialise(module: nn.Module) -> None:
    """Swin's: truncated normal weights and zero biases in linear layers."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _bind(gate: BlockGate, index: int) -> Callable[[Tensor], Tensor]:
    return lambda logits: gate(index, logits)


def _with_current(stack: Tensor, x: Tensor) -> Tensor:
    """``stack`` with ``x`` as its last frame; in place where no gradient needs the old one."""
    if torch.is_grad_enabled():
        return torch.cat((stack[:, :-1], x[:, None]), dim=1)
    stack[:, -1].copy_(x)
    return stack


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution on ``(n, h, w, c)``."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]
