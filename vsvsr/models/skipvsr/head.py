"""The gated head: which tiles of a frame are reconstructed anew."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr.models.common import PixelShuffleHead
from vsvsr.models.skipvsr.gate import Tally, TileGate, sample
from vsvsr.ops.block_skip import DENSE_FRACTION, TileGrid

HALO = 2
"""LR pixels around a tile that its reconstruction depends on."""
_BATCH = 16
"""Tiles reconstructed at a time: few enough for their wide maps to stay in a CPU's caches."""


class GatedHead:
    """A head that remembers the last picture of one pass and renews the tiles whose features changed.

    What the head adds to the enlarged frame is treated like the residual of one more block: its gates look at the
    states that both trunks leave, and where neither asks for it, what the head added last is added again.

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
            features: what the head reconstructs from, ``(1, 64, h, w)``.
        """
        samples = sample(states).chunk(len(self._gates), dim=-1)
        if not self._references:
            height, width = features.shape[-2:]
            self._grid = TileGrid(1, height, width, self._tile, features.device)
            self._references = list(samples)
            self._detail = self._head.detail(features)
            self._tally.add(self._grid.count, self._grid.count)
            return self._detail.clone()
        pairs = list(zip(self._gates, samples, self._references, strict=True))
        active = torch.stack([gate(now, before) for gate, now, before in pairs]).any(0)
        tiles = active.flatten().nonzero()[:, 0]
        if len(tiles) > DENSE_FRACTION * self._grid.count:
            active.fill_(True)
            self._detail = self._head.detail(features)
        else:
            pixels = self._grid.pixels(features)
            for batch in torch.split(tiles, _BATCH):
                self._renew(pixels, batch)
        self._references = [gate.move(before, now, active) for gate, now, before in pairs]
        self._tally.add(int(active.sum()), self._grid.count)
        return self._detail.clone()

    def _renew(self, pixels: Tensor, tiles: Tensor) -> None:
        """Reconstruct the listed tiles: each convolution takes away a pixel of what surrounds them.

        What lies outside the frame is zero before each convolution, as its padding is on the whole frame.
        """
        head, grid = self._head, self._grid
        inside = grid.inside(tiles)
        x = F.conv2d(grid.gather(pixels, tiles), head.upconv1.weight, head.upconv1.bias)
        x = F.leaky_relu_(F.pixel_shuffle(x, 2), 0.1)
        x = F.conv2d(_clear(x, _enlarge(inside, 2)), head.upconv2.weight, head.upconv2.bias)
        inside = _enlarge(inside, 4)[..., 2:-2, 2:-2]
        x = F.leaky_relu_(F.pixel_shuffle(x, 2), 0.1)
        x = F.leaky_relu_(F.conv2d(_clear(x, inside), head.conv_hr.weight, head.conv_hr.bias), 0.1)
        x = F.conv2d(_clear(x, inside[..., 1:-1, 1:-1]), head.conv_last.weight, head.conv_last.bias)
        side = 4 * grid.tile
        for number, tile in zip(tiles.tolist(), x, strict=True):
            row, column = divmod(number, grid.columns)
            target = self._detail[:, side * row : side * (row + 1), side * column : side * (column + 1)]
            target.copy_(tile[:, : target.shape[1], : target.shape[2]])


def _enlarge(mask: Tensor, times: int) -> Tensor:
    return mask.repeat_interleave(times, 1).repeat_interleave(times, 2)


def _clear(x: Tensor, inside: Tensor) -> Tensor:
    """``x`` ``(k, c, s, s)`` with zeros where ``inside`` ``(k, s, s)`` is False, in place; most tiles need nothing."""
    for tile, mask in zip(x, inside, strict=True):
        if not mask.all():
            tile *= mask
    return x
