"""Spatial tiles with Gaussian blending."""

from collections.abc import Sequence

import torch
from torch import Tensor

_VARIANCE = 0.01
"""Of the blending weights, in units of the tile's side."""


class Tiles:
    """A plane cut into overlapping tiles of one size.

    Args:
        height: of the plane.
        width: of the plane.
        tile: largest height and width of a tile, 0 for any; a side of the plane that is no longer is not cut.
        overlap: of neighbours, at least; but no more than half a tile.

    Attributes:
        size: height and width of the tiles: multiples of 8 (where the plane is cut), as small as their number allows.
    """

    def __init__(self, height: int, width: int, *, tile: tuple[int, int], overlap: int) -> None:
        self._height, self._width = height, width
        rows, columns = (_spans(*side, overlap) for side in zip((height, width), tile, strict=True))
        self._spans = [(row, column) for row in rows for column in columns]
        self.size = rows[0][1], columns[0][1]

    def __len__(self) -> int:
        return len(self._spans)

    def cut(self, plane: Tensor, factor: int = 1) -> list[Tensor]:
        """The tiles of ``(t, c, factor * height, factor * width)``."""
        return [
            plane[..., top * factor : bottom * factor, left * factor : right * factor]
            for (top, bottom), (left, right) in self._spans
        ]

    def blend(self, tiles: Sequence[Tensor], factor: int = 1) -> Tensor:
        """The plane ``(t, c, factor * height, factor * width)`` from its tiles, weighted in fp32."""
        if len(tiles) == 1:
            return tiles[0]
        tile = tiles[0]
        shape = (*tile.shape[:2], self._height * factor, self._width * factor)
        total = torch.zeros(shape, dtype=torch.float32, device=tile.device)
        weights = torch.zeros(shape[2:], dtype=torch.float32, device=tile.device)
        weight = _gaussian(tile.shape[-2]).to(tile.device)[:, None] * _gaussian(tile.shape[-1]).to(tile.device)
        for target, part in zip(self.cut(total, factor), tiles, strict=True):
            target.add_(part.float() * weight)
        for covered in self.cut(weights[None, None], factor):
            covered.add_(weight)
        return (total / weights).to(tile.dtype)


def _spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    if not tile or length <= tile:
        return [(0, length)]
    overlap = min(overlap, tile // 2)
    count = -(-(length - overlap) // (tile - overlap))
    # Equal tiles of the next multiple of 8, spread evenly.
    tile = min(tile, -(-(length + (count - 1) * overlap) // (8 * count)) * 8)
    starts = [round(place * (length - tile) / (count - 1)) for place in range(count)]
    return [(start, start + tile) for start in starts]


def _gaussian(size: int) -> Tensor:
    """Weights ``exp(-x^2 / (2 * 0.01))``, with x from the middle of the tile in units of its side; positive."""
    x = (torch.arange(size, dtype=torch.float32) - (size - 1) / 2) / size
    return (-(x**2) / (2 * _VARIANCE)).exp()
