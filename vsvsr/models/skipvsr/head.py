"""The gated head: which tiles of a frame are reconstructed anew."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vsvsr.models.common import PixelShuffleHead
from vsvsr.models.skipvsr.gate import Tally, TileGate, sample
from vsvsr.ops import conv2d
from vsvsr.ops.block_skip import SkipGrid

_BATCH = 16
"""Tiles reconstructed at a time: few enough for their wide maps to stay in a CPU's caches."""


class GatedHead:
    """A head that keeps the last picture of one pass and recomputes the tiles whose features changed.

    What the head adds to the enlarged frame is treated like the residual of one more block: its gates compare the
    final states of both trunks, and where neither changed, what the head added last is added again.

    Args:
        head: the network; its four convolutions are used.
        gates: for each group of channels of the features that `__call__` takes first.
        tile: side of a tile in LR pixels.
        tally: counts tiles.
    """

    def __init__(self, head: PixelShuffleHead, gates: list[TileGate], tile: int, tally: Tally) -> None:
        self._head, self._gates, self._tile, self._tally = head, gates, tile, tally
        self._references: list[Tensor] = []

    def __call__(self, states: Tensor, features: Tensor) -> Tensor:
        """What to add to the enlarged frame, ``(3, 4h, 4w)``.

        Args:
            states: what the gates look at, ``(1, c * gates, h, w)``.
            features: what the head reconstructs from, ``(1, c, h, w)``.
        """
        samples = sample(states).chunk(len(self._gates), dim=-1)
        if not self._references:
            height, width = features.shape[-2:]
            self._grid = SkipGrid(1, height, width, self._tile, features.device)
            self._references = list(samples)
            return self._renew_all(features)
        pairs = list(zip(self._gates, samples, self._references, strict=True))
        active = torch.stack([gate(now, before) for gate, now, before in pairs]).any(0)
        tiles = active.flatten().nonzero()[:, 0]
        if self._grid.runs_everywhere(len(tiles)):
            self._references = list(samples)
            return self._renew_all(features)
        self._references = [gate.move(before, now, active) for gate, now, before in pairs]
        pixels = self._grid.pixels(features)
        for batch in torch.split(tiles, _BATCH):
            self._details.index_copy_(0, batch, self._renew(pixels, batch))
        self._tally.add(len(tiles), self._grid.count)
        return self._picture()

    def _renew_all(self, features: Tensor) -> Tensor:
        """Reconstruct everything; returns it as `__call__` does."""
        grid, side = self._grid, 4 * self._tile
        detail = self._head.detail(features)
        missing = (0, grid.columns * side - detail.shape[2], 0, grid.rows * side - detail.shape[1])
        tiles = rearrange(F.pad(detail, missing), "c (rows y) (columns x) -> (rows columns) c y x", y=side, x=side)
        self._details = tiles.contiguous()
        self._tally.add(grid.count, grid.count)
        return detail

    def _picture(self) -> Tensor:
        """The tiles put together."""
        grid = self._grid
        whole = rearrange(self._details, "(rows columns) c y x -> c (rows y) (columns x)", rows=grid.rows)
        return whole[:, : 4 * grid.height, : 4 * grid.width]

    def _renew(self, pixels: Tensor, tiles: Tensor) -> Tensor:
        """Reconstruct the listed tiles, ``(k, 3, s, s)``: each convolution takes away a pixel of what surrounds them.

        What lies outside the frame is zero before each convolution, as its padding is on the whole frame.
        """
        head, grid = self._head, self._grid
        inside = grid.inside(tiles)[:, None]
        x = conv2d(grid.gather(pixels, tiles), head.upconv1.weight, head.upconv1.bias)
        x = F.leaky_relu_(F.pixel_shuffle(x, 2), 0.1).mul_(_enlarge(inside, 2))
        x = conv2d(x, head.upconv2.weight, head.upconv2.bias)
        inside = _enlarge(inside, 4)[..., 2:-2, 2:-2]
        x = F.leaky_relu_(F.pixel_shuffle(x, 2), 0.1).mul_(inside)
        x = F.leaky_relu_(conv2d(x, head.conv_hr.weight, head.conv_hr.bias), 0.1).mul_(inside[..., 1:-1, 1:-1])
        return conv2d(x, head.conv_last.weight, head.conv_last.bias)


def _enlarge(mask: Tensor, times: int) -> Tensor:
    return mask.repeat_interleave(times, 2).repeat_interleave(times, 3)
