"""BasicVSR (Chan et al., CVPR 2021): bidirectional recurrent x4 super-resolution."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsvsr.models.common import PixelShuffleHead, ResidualBlocksWithInputConv, SPyNet, Write
from vsvsr.models.common.offload import Buffered, OffloadBuffer
from vsvsr.models.common.padding import extend
from vsvsr.ops import flow_warp

Direction = Literal["backward", "forward"]
Trunk = Callable[[Tensor], Tensor]
Split = Callable[[Tensor], Tensor]
Flows = Callable[[int, int], Tensor]


class BasicVSR(PixelShuffleHead):
    """Two recurrent passes over the clip, then fusion and pixel-shuffle reconstruction; BasicSR's state dict.

    The backward pass keeps ``b_i``, the forward pass makes ``f_i``; each is ``trunk([x_i, warp(previous, flow)])``,
    with zeros in place of the warped state at the end where the pass begins. Output ``i`` depends on ``[b_i, f_i]``.

    Args:
        channels: of the states; the defaults are the published networks.
        blocks: residual blocks of each trunk.
    """

    def __init__(self, channels: int = 64, blocks: int = 30) -> None:
        super().__init__(channels)
        self.spynet = SPyNet()
        self.backward_trunk = ResidualBlocksWithInputConv(3 + channels, channels, blocks)
        self.forward_trunk = ResidualBlocksWithInputConv(3 + channels, channels, blocks)
        self.fusion = nn.Conv2d(2 * channels, channels, 1)
        # CPU convolutions run about 1.5 times faster on this layout.
        self.to(memory_format=torch.channels_last)

    def forward(self, clip: Tensor) -> Tensor:
        """RGB in [0, 1], ``(n, t, 3, h, w)`` to ``(n, t, 3, 4h, 4w)``, not clamped; sides of at least 33."""
        frames = clip.unbind(1)
        passes = self.passes(frames, range(len(frames)))
        pairs = zip(passes, frames, strict=True)
        return torch.stack([self.reconstruct(self.fuse(states), frame) for states, frame in pairs], dim=1)

    @torch.no_grad()
    def chunk(self, frames: Sequence[Tensor], emit: range, *, buffer: OffloadBuffer | None = None) -> Iterator[Write]:
        """Upscale the frames in ``emit``, one by one in order; nothing of one call is left for the next.

        The first ``next`` runs the backward pass, each one a step of the forward pass. Frames after ``emit`` are seen
        by the backward pass only, frames before it by the forward pass only.

        Args:
            frames: a stretch of the clip, each ``(1, 3, h, w)``, RGB in [0, 1].
            emit: a non-empty range of indices with step 1.
            buffer: for the backward pass's features, ``4 c h w`` bytes a frame in fp32; by default on the
                device.

        Returns:
            For each frame a function that writes it into three planes: R, G and B, each ``(4h, 4w)`` with any strides,
            type and device. It may be called at any time, and again; it holds ``4 c h w`` bytes.
        """
        height, width = frames[0].shape[-2:]
        passes = self.passes([extend(frame) for frame in frames], emit, buffer=buffer)
        for i, states in zip(emit, passes, strict=True):
            yield partial(self.render, self.fuse(states)[..., :height, :width], frames[i])

    def upscale(
        self, frames: Sequence[Tensor], emit: range, *, buffer: OffloadBuffer | None = None
    ) -> Iterator[Tensor]:
        """``chunk`` with ``(3, h, w)`` frames, into fresh tensors ``(3, 4h, 4w)``, not clamped."""
        _, height, width = frames[0].shape
        for write in self.chunk([frame[None] for frame in frames], emit, buffer=buffer):
            upscaled = frames[0].new_empty(3, 4 * height, 4 * width)
            write(upscaled.unbind(0))
            yield upscaled

    def passes(
        self,
        frames: Sequence[Tensor],
        emit: range,
        *,
        split: Split | None = None,
        buffer: OffloadBuffer | None = None,
    ) -> Iterator[Tensor]:
        """Both passes over ``frames`` ``(n, 3, h, w)``: their states ``(n, 2c, h, w)`` for each frame of ``emit``.

        Flows are those of whole frames; with ``split`` everything else runs on what it makes of frames and flows.
        """
        buffer = buffer or OffloadBuffer()
        kept: list[Buffered] = []
        flows = self.flows(frames)
        trunk, state = self.trunk("backward"), None
        for i in range(len(frames) - 1, emit.start - 1, -1):
            state = self.step(trunk, frames[i], flows(i, i + 1) if state is not None else None, state, split)
            if i in emit:
                kept.append(buffer.put(state))
        trunk, state = self.trunk("forward"), None
        for i in range(emit.stop):
            state = self.step(trunk, frames[i], flows(i, i - 1) if state is not None else None, state, split)
            if i in emit:
                yield torch.cat((buffer.take(kept.pop()), state), dim=1)

    def fuse(self, states: Tensor) -> Tensor:
        """The states of both passes ``(n, 2c, h, w)`` to the features of the picture ``(n, c, h, w)``."""
        return F.leaky_relu(self.fusion(states), 0.1)

    def flows(self, frames: Sequence[Tensor]) -> Flows:
        """Flow ``(n, 2, h, w)`` from one of ``frames`` to another one, by their numbers.

        It is computed in SPyNet's own type, which stays fp32 in a network that is otherwise half precision.
        """
        precise = self.spynet.mean.dtype

        def flow(i: int, j: int) -> Tensor:
            with torch.autocast(frames[i].device.type, enabled=False):
                return self.spynet(frames[i].to(precise), frames[j].to(precise))  # type: ignore[no-any-return]

        return flow

    def step(
        self, trunk: Trunk, frame: Tensor, flow: Tensor | None, state: Tensor | None, split: Split | None = None
    ) -> Tensor:
        """One step of a pass: the ``state``, moved to ``frame`` along ``flow``, and refined; both None at the start."""
        if split is not None:
            frame, flow = split(frame), None if flow is None else split(flow)
        if state is None or flow is None:
            warped = frame.new_zeros(len(frame), self.fusion.out_channels, *frame.shape[-2:])
        else:
            warped = flow_warp(state, flow)
        return trunk(torch.cat((frame, warped), dim=1).contiguous(memory_format=torch.channels_last))

    def half(self) -> Self:
        """Half precision for all but SPyNet: flow in fp16 loses whole pixels."""
        super().half()
        self.spynet.float()
        return self

    def trunk(self, direction: Direction) -> Trunk:
        """The trunk for one pass over one stretch: ``(n, 3 + c, h, w)`` to ``(n, c, h, w)``, called frame by frame."""
        return self.backward_trunk if direction == "backward" else self.forward_trunk
