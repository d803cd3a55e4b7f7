"""Spatial tiles: where they lie, and how much each counts where they overlap."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
    lasts = [min(start + (tile or length) + pad, length) for start in starts]
    ranges = [(max(min(start - pad, last - smallest), 0), last) for start, last in zip(starts, lasts, strict=True)]
    ramps = []
    for first, last in ranges:
        position = torch.arange((last - first) * scale, dtype=torch.float32) + 0.5
        # The ramp at the clip's own border would cancel in the normalisation, but divide small numbers: leave it out.
        rise = position / (2 * pad * scale) if first and pad else torch.ones_like(position)
        fall = position.flip(0) / (2 * pad * scale) if last < length and pad else torch.ones_like(position)
        ramps.append(torch.minimum(rise, fall).clamp(max=1))
    total = torch.zeros(length * scale)
    for (first, last), ramp in zip(ranges, ramps, strict=True):
        total[first * scale : last * scale] += ramp
    return tuple(
        Span(first, last - first, ramp / total[first * scale : last * scale])
        for (first, last), ramp in zip(ranges, ramps, strict=True)
    )
