"""Spatial tiles: where they lie, and how they are blended where they overlap."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr.models.common import Write


@dataclass(frozen=True, slots=True)
class Span:
    """One tile along one axis, in source pixels.

    Attributes:
        start: first pixel that the network sees.
        size: pixels that the network sees.
        weight: what each pixel counts, at output resolution ``(size * scale,)``; over all spans they sum to 1.
    """

    start: int
    size: int
    weight: Tensor


def spans(length: int, tile: int, pad: int, smallest: int, scale: int) -> tuple[Span, ...]:
    """Tiles of ``tile`` pixels with ``pad`` pixels of context on both sides, blended linearly over the context.

    Args:
        length: source pixels along the axis.
        tile: source pixels that a tile adds; 0 = everything.
        pad: source pixels of context.
        smallest: source pixels that a tile sees at least.
        scale: output pixels per source pixel.
    """
    starts = range(0, length, tile) if tile else range(1)
    lasts = [min(max(start + (tile or length) + pad, smallest), length) for start in starts]
    ranges = [(max(min(start - pad, last - smallest), 0), last) for start, last in zip(starts, lasts, strict=True)]
    ramps = []
    for first, last in ranges:
        position = torch.arange((last - first) * scale, dtype=torch.float32) + 0.5
        # The ramp at the clip's own border would cancel in the normalisation, but divide small numbers: leave it out.
        rise = position / (2 * pad * scale) if first and pad else torch.ones_like(position)
        fall = position.flip(0) / (2 * pad * scale) if last < length and pad else torch.ones_like(position)
        ramps.append(torch.minimum(rise, fall).clamp(max=1))
    total = torch.zeros(length * scale, dtype=torch.float32)
    for (first, last), ramp in zip(ranges, ramps, strict=True):
        total[first * scale : last * scale] += ramp
    return tuple(
        Span(first, last - first, ramp / total[first * scale : last * scale])
        for (first, last), ramp in zip(ranges, ramps, strict=True)
    )


class TileGrid:
    """The tiles of a clip's frames, each of which is a clip of its own to the network.

    Args:
        width: source pixels.
        height: source pixels.
        tile: width and height of a tile, 0 = everything.
        pad: source pixels of context around every tile.
        smallest: frames and tiles have sides of at least this; smaller frames are padded by repeating their border.
        scale: output pixels per source pixel.

    Attributes:
        scale: as given.
    """

    def __init__(self, width: int, height: int, tile: Sequence[int], pad: int, *, smallest: int, scale: int) -> None:
        self._padding = (0, max(smallest - width, 0), 0, max(smallest - height, 0))
        columns = spans(width + self._padding[1], tile[0], pad, smallest, scale)
        rows = spans(height + self._padding[3], tile[1], pad, smallest, scale)
        self._tiles = list(itertools.product(rows, columns))
        self._ramps: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}
        self.scale = scale

    @property
    def sizes(self) -> set[tuple[int, int]]:
        """Heights and widths of tiles that there are."""
        return {(rows.size, columns.size) for rows, columns in self._tiles}

    def pad(self, frame: Tensor) -> Tensor:
        """The frame ``(1, 3, h, w)``, with sides large enough."""
        return F.pad(frame, self._padding, mode="replicate") if any(self._padding) else frame

    def cut(self, frame: Tensor) -> list[Tensor]:
        """Every tile of a padded frame ``(1, 3, h, w)``, as views."""
        return [
            frame[..., rows.start : rows.start + rows.size, columns.start : columns.start + columns.size]
            for rows, columns in self._tiles
        ]

    def write(self, parts: Sequence[Write], planes: Sequence[Tensor]) -> None:
        """Have every tile written into ``planes``, blended where they overlap; one tile writes there directly."""
        if len(parts) == 1:
            parts[0](planes)
            return
        for plane in planes:
            plane.zero_()
        device = planes[0].device
        if device not in self._ramps:
            self._ramps[device] = [(rows.weight.to(device), columns.weight.to(device)) for rows, columns in self._tiles]
        for part, (rows, columns), (down, across) in zip(parts, self._tiles, self._ramps[device], strict=True):
            size = (3, rows.size * self.scale, columns.size * self.scale)
            picture = torch.empty(size, dtype=torch.float32, device=device)
            part(picture.unbind())
            picture *= down[:, None] * across
            top, left = rows.start * self.scale, columns.start * self.scale
            for plane, channel in zip(planes, picture, strict=True):
                target = plane[top : top + channel.shape[0], left : left + channel.shape[1]]
                target += channel[: target.shape[0], : target.shape[1]]
