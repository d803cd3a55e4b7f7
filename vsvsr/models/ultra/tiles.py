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
        tile: side of a tile; a shorter side of the plane is not cut.
        overlap: of neighbours; the last ones overlap more, so that they end with the plane.
    """

    def __init__(self, height: int, width: int, *, tile: int, overlap: int) -> None:
        self._height, self._width = height, width
        rows, columns = (_spans(length, tile, overlap) for length in (height, width))
        self._spans = [(row, column) for row in rows for column in columns]

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
    if length <= tile:
        return [(0, length)]
    starts = [*range(0, length - tile, tile - overlap), length - tile]
    return [(start, start + tile) for start in starts]


def _gaussian(size: int) -> Tensor:
    """Weights ``exp(-x^2 / (2 * 0.01))``, with x from the middle of the tile in units of its side; positive."""
    x = (torch.arange(size, dtype=torch.float32) - (size - 1) / 2) / size
    return (-(x**2) / (2 * _VARIANCE)).exp()
