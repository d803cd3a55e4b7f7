"""BasicVSR (Chan et al., CVPR 2021): bidirectional recurrent x4 super-resolution."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsvsr.models.common import PixelShuffleHead, ResidualBlocksWithInputConv, SPyNet
from vsvsr.ops import flow_warp

CHANNELS = 64
BLOCKS = 30
SMALLEST = 64
"""Frames with a shorter side are extended to it by reflection: SPyNet has no coarsest level below 33."""

Direction = Literal["backward", "forward"]
Trunk = Callable[[Tensor], Tensor]


class BasicVSR(PixelShuffleHead):
    """Two recurrent passes over the clip, then fusion and pixel-shuffle reconstruction; BasicSR's state dict.

    The backward pass keeps ``b_i``, the forward pass makes ``f_i``; each is ``trunk([x_i, warp(previous, flow)])``,
    with zeros in place of the warped state at the end where the pass begins. Output ``i`` depends on ``[b_i, f_i]``.
    """

    def __init__(self) -> None:
        super().__init__(CHANNELS)
        self.spynet = SPyNet()
        self.backward_trunk = ResidualBlocksWithInputConv(3 + CHANNELS, CHANNELS, BLOCKS)
        self.forward_trunk = ResidualBlocksWithInputConv(3 + CHANNELS, CHANNELS, BLOCKS)
        self.fusion = nn.Conv2d(2 * CHANNELS, CHANNELS, 1)
        # CPU convolutions run about 1.5 times faster on this layout.
        self.to(memory_format=torch.channels_last)

    def forward(self, clip: Tensor) -> Tensor:
        """RGB in [0, 1], ``(n, t, 3, h, w)`` to ``(n, t, 3, 4h, 4w)``, not clamped."""
        frames = clip.unbind(1)
        upscaled = [
            self.reconstruct(features, frame)
            for frame, features in zip(frames, self.features(frames, range(len(frames))), strict=True)
        ]
        return torch.stack(upscaled, dim=1)

    def features(self, frames: Sequence[Tensor], emit: range, *, offload: bool = False) -> Iterator[Tensor]:
        """What ``reconstruct`` and ``render`` need for the frames in ``emit``, one by one in order.

        The first ``next`` runs the backward pass. Frames after ``emit`` are seen by the backward pass only, frames
        before it by the forward pass only. At most ``len(emit)`` feature maps are kept, each ``256 n h w`` bytes.

        Args:
            frames: a stretch of the clip, each ``(n, 3, h, w)``, RGB in [0, 1].
            emit: a non-empty range of indices with step 1.
            offload: keep the backward pass's features in host memory.

        Returns:
            Fused features ``(n, 64, h, w)``.
        """
        height, width = frames[0].shape[-2:]
        frames = [_extend(frame) for frame in frames]
        kept: list[Tensor] = []
        trunk, state = self.trunk("backward"), None
        for i in range(len(frames) - 1, emit.start - 1, -1):
            state = self.step(trunk, frames[i], frames[i + 1] if state is not None else None, state)
            if i in emit:
                kept.append(state.to("cpu") if offload else state)
        trunk, state = self.trunk("forward"), None
        for i in range(emit.stop):
            state = self.step(trunk, frames[i], frames[i - 1] if state is not None else None, state)
            if i in emit:
                both = torch.cat((kept.pop().to(state.device), state), dim=1)
                yield F.leaky_relu(self.fusion(both), 0.1)[..., :height, :width]

    def step(self, trunk: Trunk, frame: Tensor, previous: Tensor | None, state: Tensor | None) -> Tensor:
        """One step of a pass: the state of ``previous`` moved to ``frame`` and refined; both ``None`` at the start."""
        if state is None or previous is None:
            warped = frame.new_zeros(len(frame), CHANNELS, *frame.shape[-2:])
        else:
            warped = flow_warp(state, self.spynet(frame, previous))
        return trunk(torch.cat((frame, warped), dim=1).contiguous(memory_format=torch.channels_last))

    def trunk(self, direction: Direction) -> Trunk:
        """The trunk for one pass over one stretch: ``(n, 67, h, w)`` to ``(n, 64, h, w)``, called frame by frame."""
        return self.backward_trunk if direction == "backward" else self.forward_trunk

    def upscale(self, frames: Sequence[Tensor], emit: range, *, offload: bool = False) -> Iterator[Tensor]:
        """The frames in ``emit`` as ``(3, 4h, 4w)``, one by one; ``frames`` are ``(3, h, w)``. See ``features``."""
        batches = [frame[None] for frame in frames]
        for i, features in zip(emit, self.features(batches, emit, offload=offload), strict=True):
            height, width = frames[i].shape[-2:]
            upscaled = features.new_empty(3, 4 * height, 4 * width)
            self.render(features, batches[i], upscaled.unbind(0))
            yield upscaled


def _extend(frame: Tensor) -> Tensor:
    """Reflect right and bottom until both sides reach ``SMALLEST``, as often as that takes."""
    for dim in (-2, -1):
        size = frame.shape[dim]
        if size < SMALLEST:
            period = max(2 * (size - 1), 1)
            index = (torch.arange(SMALLEST, device=frame.device) + size - 1) % period - (size - 1)
            frame = frame.index_select(dim, index.abs())
    return frame
