"""SkipVSR (ACM MM 2024): BasicVSR whose residual blocks run only where the picture changed."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from vsvsr.models.basicvsr.network import BasicVSR, Direction, Flows, Trunk
from vsvsr.models.common import Write
from vsvsr.models.common.offload import OffloadBuffer
from vsvsr.models.common.padding import extend
from vsvsr.models.skipvsr.gate import GatedTrunk, Tally, TileGate
from vsvsr.models.skipvsr.head import GatedHead
from vsvsr.models.skipvsr.motion import changed_windows
from vsvsr.models.skipvsr.patches import PatchGrid

Mode = Literal["frame", "patch"]
FRAME_TILE = 16
"""Side of a gated tile in frame mode. Tiles of 16 cost no more per pixel than the paper's 48 and select better."""


class SkipVSR(BasicVSR):
    """BasicVSR with a gate in front of every residual block of both trunks; state dict: BasicVSR's and the estimators'.

    In frame mode everything is as in BasicVSR on the full frame, and blocks run per tile of a fixed grid. In patch
    mode overlapping 48x48 patches are separate clips (with the full frame's flows), a block runs on a whole patch or
    not at all, and the patches are merged with ramps over their overlap.

    Args:
        channels: see `BasicVSR`.
        blocks: see `BasicVSR`.
        threshold: blocks run where the execution confidence is at least this, 0 (always: BasicVSR, bit for bit)
            to 1 (never, but for the first frame of each pass).
        mode: frame or patch.
        hold: whether a skipped block adds its last residual again; else it is passed by, as in the paper. In frame
            mode the head is then gated as well: tiles whose features did not change keep the detail it added last.
        stride: blocks that share the decision of the first of them.
    """

    kappa: Tensor
    quantiles: Tensor

    def __init__(
        self,
        channels: int = 64,
        blocks: int = 30,
        *,
        threshold: float = 0.0,
        mode: Mode = "frame",
        hold: bool = True,
        stride: int = 1,
    ) -> None:
        super().__init__(channels, blocks)
        self.threshold, self.mode, self.hold, self.stride = threshold, mode, hold, stride
        self.tally, self.head_tally = Tally(), Tally()
        self.estimator_backward = nn.Linear(channels, 1)
        self.estimator_forward = nn.Linear(channels, 1)
        self.register_buffer("kappa", torch.zeros(()))
        self.register_buffer("quantiles", torch.linspace(0, 1, 101))

    def threshold_of(self, budget: float) -> float:
        """The threshold at which a share ``budget`` (0 to 1) of blocks ran on the calibration clips."""
        position = (1 - budget) * (len(self.quantiles) - 1)
        lower = min(int(position), len(self.quantiles) - 2)
        below, above = self.quantiles[lower : lower + 2].tolist()
        return 0.0 if budget >= 1 else float(below + (above - below) * (position - lower))

    def trunk(self, direction: Direction) -> Trunk:
        trunk = self.backward_trunk if direction == "backward" else self.forward_trunk
        if self.threshold == 0:
            return trunk
        return GatedTrunk(trunk, self.gate(direction), hold=self.hold, stride=self.stride, tally=self.tally)

    def flows(self, frames: Sequence[Tensor]) -> Flows:
        """In frame mode zero where neighbouring frames are the same, unless every block runs."""
        estimated = super().flows
        if self.threshold == 0 or self.mode == "patch":
            return estimated(frames)
        windows = changed_windows(frames)

        def flow(i: int, j: int) -> Tensor:
            window = windows[min(i, j)]
            flow = frames[i].new_zeros(len(frames[i]), 2, *frames[i].shape[-2:], dtype=self.spynet.mean.dtype)
            if window is not None:
                parts = [frames[k][..., window[0], window[1]] for k in (i, j)]
                flow[..., window[0], window[1]] = estimated(parts)(0, 1)
            return flow

        return flow

    def gate(self, direction: Direction) -> TileGate:
        """The gate of one direction at the present threshold."""
        estimator = self.estimator_backward if direction == "backward" else self.estimator_forward
        return TileGate(estimator, self.threshold, PatchGrid.SIDE if self.mode == "patch" else FRAME_TILE)

    @torch.no_grad()
    def chunk(self, frames: Sequence[Tensor], emit: range, *, buffer: OffloadBuffer | None = None) -> Iterator[Write]:
        if self.mode == "patch":
            yield from self._patches(frames, emit, buffer)
        elif self.threshold > 0 and self.hold:
            yield from self._gated(frames, emit, buffer)
        else:
            yield from super().chunk(frames, emit, buffer=buffer)

    def _gated(self, frames: Sequence[Tensor], emit: range, buffer: OffloadBuffer | None) -> Iterator[Write]:
        """Frame mode with a gate in front of the head as well; a result holds ``192 h w`` bytes."""
        height, width = frames[0].shape[-2:]
        gates = [self.gate("backward"), self.gate("forward")]
        head = GatedHead(self, gates, FRAME_TILE, self.head_tally)
        passes = self.passes([extend(frame) for frame in frames], emit, buffer=buffer)
        for i, states in zip(emit, passes, strict=True):
            detail = head(states[..., :height, :width], self.fuse(states)[..., :height, :width])
            yield partial(self.add_base, detail, frames[i])

    def _patches(self, frames: Sequence[Tensor], emit: range, buffer: OffloadBuffer | None) -> Iterator[Write]:
        extended = [extend(frame) for frame in frames]
        height, width = extended[0].shape[-2:]
        grid = PatchGrid(height, width, frames[0].device)
        passes = self.passes(extended, emit, split=grid.split, buffer=buffer)
        for i, states in zip(emit, passes, strict=True):
            yield partial(self._render_patches, self.fuse(states), extended[i], grid)

    @torch.no_grad()
    def _render_patches(self, features: Tensor, frame: Tensor, grid: PatchGrid, planes: Sequence[Tensor]) -> None:
        patches = features.new_empty(len(features), 3, 4 * grid.SIDE, 4 * grid.SIDE)
        for patch, feature, picture in zip(patches, features, grid.split(frame), strict=True):
            self.render(feature[None], picture[None], patch.unbind(0))
        for plane, merged in zip(planes, grid.merge(patches), strict=True):
            plane.copy_(merged[: plane.shape[0], : plane.shape[1]])
