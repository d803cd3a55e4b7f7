"""Overlapping patches of a frame, and their merger."""

import torch
from torch import Tensor


def _starts(size: int, side: int, stride: int) -> list[int]:
    """0, stride, ... with the last patch moved back to end at the border; ``size`` is at least ``side``."""
    return [*range(0, size - side, stride), size - side]


def _ramps(starts: list[int], side: int, scale: int, device: torch.device) -> Tensor:
    """Weights ``(patches, side * scale)`` that rise and fall linearly over overlaps and add up to 1 everywhere."""
    position = (torch.arange(side * scale, dtype=torch.float32, device=device) + 0.5) / scale
    weights = torch.ones(len(starts), side * scale, dtype=torch.float32, device=device)
    for i in range(1, len(starts)):
        rising = (position / (starts[i - 1] + side - starts[i])).clamp(max=1)
        weights[i] *= rising
        weights[i - 1] *= rising.flip(0)
    # The last patch, moved back, may overlap two others.
    total = torch.zeros((starts[-1] + side) * scale, dtype=torch.float32, device=device)
    spans = [slice(start * scale, (start + side) * scale) for start in starts]
    for span, weight in zip(spans, weights, strict=True):
        total[span] += weight
    return torch.stack([weight / total[span] for span, weight in zip(spans, weights, strict=True)])


class PatchGrid:
    """48x48 patches with a stride of 46 over frames of ``height`` x ``width``, both at least 48."""

    SIDE = 48
    STRIDE = 46

    def __init__(self, height: int, width: int, device: torch.device) -> None:
        self.height, self.width = height, width
        self.tops = _starts(height, self.SIDE, self.STRIDE)
        self.lefts = _starts(width, self.SIDE, self.STRIDE)
        vertical = _ramps(self.tops, self.SIDE, 4, device)
        horizontal = _ramps(self.lefts, self.SIDE, 4, device)
        self._weights = vertical[:, None, :, None] * horizontal[None, :, None, :]

    def split(self, frame: Tensor) -> Tensor:
        """``(1, c, height, width)`` to patches ``(p, c, 48, 48)``, row by row."""
        side = self.SIDE
        return torch.cat([frame[:, :, y : y + side, x : x + side] for y in self.tops for x in self.lefts])

    def merge(self, patches: Tensor) -> Tensor:
        """Four times larger patches ``(p, c, 192, 192)`` to ``(c, 4 height, 4 width)``."""
        merged = patches.new_zeros(patches.shape[1], 4 * self.height, 4 * self.width)
        side = 4 * self.SIDE
        corners = [(4 * y, 4 * x) for y in self.tops for x in self.lefts]
        for (y, x), patch, weight in zip(corners, patches, self._weights.flatten(0, 1), strict=True):
            merged[:, y : y + side, x : x + side] += patch * weight
        return merged
