"""MIA-VSR: bidirectional x4 super-resolution with masked inter and intra-frame attention (Zhou et al., CVPR 2024)."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from vsvsr.models.common import PixelShuffleHead, SPyNet
from vsvsr.models.common.offload import Buffered, OffloadBuffer
from vsvsr.models.common.padding import extend
from vsvsr.models.mia.alignment import patch_align
from vsvsr.models.mia.block import BlockMemory
from vsvsr.models.mia.gates import Gate, MaskSite, threshold_gate
from vsvsr.models.mia.propagation import PropagationModule
from vsvsr.ops import flow_warp

MODULES = ("backward_1", "forward_1", "backward_2", "forward_2")
"""Propagation modules in the order in which they run; each refines the features that the one before has left."""

Flows = list[Tensor]


class MIAVSR(PixelShuffleHead):
    """Four recurrent passes over the clip in alternating directions, then pixel-shuffle reconstruction.

    The defaults are the released networks. The state dict has the official names.

    Args:
        embed_dim: channels of the features.
        depths: transformer blocks in each stage of a propagation module.
        num_heads: attention heads in each stage.
        mid_channels: channels after the last pass.
        window_size: frames (always 3), height and width (equal) of an attention window.
        use_mask: repeat what a block did one step before where its input has hardly changed.
        multi_frame: blocks of multi-frame self-attention, which the paper compares with; only without ``use_mask``.
    """

    def __init__(
        self,
        embed_dim: int = 120,
        depths: Sequence[int] = (6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6),
        mid_channels: int = 64,
        window_size: Sequence[int] = (3, 8, 8),
        use_mask: bool = True,
        multi_frame: bool = False,
    ) -> None:
        super().__init__(mid_channels)
        frames, window, width = window_size
        if frames != 3 or window != width or window not in range(2, 18, 2):
            raise ValueError(
                f"window_size {tuple(window_size)}: must be 3 frames and an even square up to 16x16, such as (3, 8, 8)"
            )
        if any(embed_dim % heads for heads in num_heads):
            raise ValueError(f"num_heads {tuple(num_heads)}: must divide embed_dim {embed_dim}")
        if multi_frame and use_mask:
            raise ValueError("multi-frame self-attention has no masks")
        self.blocks = sum(depths)
        self.spynet = SPyNet()
        self.conv_first = nn.Conv2d(3, embed_dim, 3, padding=1)
        self.patch_align = nn.ModuleDict(
            {
                name: PropagationModule(embed_dim, depths, num_heads, window, masked=use_mask, multi_frame=multi_frame)
                for name in MODULES
            }
        )
        self.conv_before_upsample = nn.Conv2d(embed_dim, mid_channels, 3, padding=1)

    def half(self) -> "MIAVSR":
        """Everything in fp16 except the flow: coordinates lose whole pixels in fp16."""
        super().half()
        self.spynet.float()
        return self

    def forward(self, clip: Tensor, *, gate: Gate = threshold_gate, sparse: bool = True) -> Tensor:
        """RGB in [0, 1], ``(n, t, 3, h, w)`` to ``(n, t, 3, 4h, 4w)``, not clamped.

        Args:
            clip: any number of frames of any size.
            gate: decides the masks; see `vsvsr.models.mia.gates`.
            sparse: leave out what the masks do not keep, where that pays (never with gradients). The result is the same
                up to rounding.
        """
        frames = clip.unbind(1)
        features = self.features(frames, range(len(frames)), gate=gate, sparse=sparse)
        return torch.stack([self.reconstruct(x, frame) for x, frame in zip(features, frames, strict=True)], dim=1)

    def features(
        self,
        frames: Sequence[Tensor],
        emit: range,
        *,
        buffer: OffloadBuffer | None = None,
        gate: Gate = threshold_gate,
        sparse: bool = True,
    ) -> Iterator[Tensor]:
        """What ``reconstruct`` and ``render`` need for the frames in ``emit``, one by one in order.

        The first ``next`` runs the first three passes. Frames after ``emit`` are not seen by the last one. One feature
        map (``4 n h w embed_dim`` bytes in fp32) is kept per frame of the stretch, and during a pass three per block.

        Args:
            frames: a stretch of the clip, each ``(n, 3, h, w)``, RGB in [0, 1].
            emit: a non-empty range of indices with step 1.
            buffer: for the feature maps of all frames but the current ones; by default on the device.
            gate: decides the masks.
            sparse: see `forward`.

        Returns:
            Features ``(n, mid_channels, h, w)``.
        """
        height, width = frames[0].shape[-2:]
        frames = [extend(frame) for frame in frames]
        forward, backward = self.flows(frames)
        buffer = buffer or OffloadBuffer()
        features = [buffer.put(self.conv_first(frame).permute(0, 2, 3, 1).contiguous()) for frame in frames]
        last = MODULES[-1]
        for name in MODULES[:-1]:
            flows = backward if name.startswith("backward") else forward
            features = [buffer.put(x) for x in self._propagate(name, features, buffer, flows, gate, sparse)]
            if name.startswith("backward"):
                features.reverse()
        while len(features) > emit.stop:
            buffer.discard(features.pop())
        for i, x in enumerate(self._propagate(last, features, buffer, forward, gate, sparse)):
            if i >= emit.start:
                x = self.conv_before_upsample(x.permute(0, 3, 1, 2))
                yield x[..., :height, :width]

    def flows(self, frames: Sequence[Tensor]) -> tuple[Flows, Flows]:
        """Flows between neighbours, ``(n, 2, h, w)`` fp32 each.

        Args:
            frames: each ``(n, 3, h, w)``, sides of at least 33.

        Returns:
            Forward flows, from frame ``i + 1`` to ``i``, and backward flows, from ``i`` to ``i + 1``.
        """
        pairs = [(a.float(), b.float()) for a, b in itertools.pairwise(frames)]
        with torch.autocast(frames[0].device.type, enabled=False):
            return [self.spynet(b, a) for a, b in pairs], [self.spynet(a, b) for a, b in pairs]

    def upscale(
        self,
        frames: Sequence[Tensor],
        emit: range,
        *,
        buffer: OffloadBuffer | None = None,
        gate: Gate = threshold_gate,
    ) -> Iterator[Tensor]:
        """The frames in ``emit`` as ``(3, 4h, 4w)``, one by one; ``frames`` are ``(3, h, w)``. See ``features``."""
        batches = [frame[None] for frame in frames]
        for i, features in zip(emit, self.features(batches, emit, buffer=buffer, gate=gate), strict=True):
            height, width = frames[i].shape[-2:]
            upscaled = features.new_empty(3, 4 * height, 4 * width)
            self.render(features, batches[i], upscaled.unbind(0))
            yield upscaled

    def _propagate(
        self, name: str, features: list[Buffered], buffer: OffloadBuffer, flows: Flows, gate: Gate, sparse: bool
    ) -> Iterator[Tensor]:
        """One pass: refined features in the order of the walk, ``(n, h, w, c)``; empties ``features`` on its way."""
        module = self.patch_align[name]
        memories: list[BlockMemory | None] = [None] * self.blocks
        backward = name.startswith("backward")
        steps = flows[::-1] if backward else flows
        before: list[Tensor] = []
        before_flow: Tensor | None = None
        for step in range(len(features)):
            current = buffer.take(features.pop(-1 if backward else 0))
            aligned = [current, current]
            if step > 0:
                flow = steps[step - 1]
                aligned = [patch_align(before[-1], flow)] * 2
                if before_flow is not None:
                    aligned[0] = patch_align(before[-2], flow + flow_warp(before_flow, flow))
                before_flow = flow
            result = module((*aligned, current), memories, _at(gate, name, step), sparse=sparse)
            before = [*before[-1:], result]
            yield result


def _at(gate: Gate, name: str, step: int) -> Callable[[int, Tensor], Tensor]:
    return lambda block, logits: gate(MaskSite(name, step, block), logits)
