"""Which part of a frame differs from its neighbour: elsewhere nothing moved, and no flow has to be estimated."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr.models.common.padding import SMALLEST

_CELL = 8
_STILL = 0.25 / 255
"""Mean absolute difference of the pixels of a cell up to which it rests. A slow pan over faint texture exceeds it."""
_MARGIN = 16
"""Pixels around what changed that the flow network sees too."""
_MULTIPLE = 32
"""Of sides that the flow network does not resize."""

Window = tuple[slice, slice]
"""Rows and columns."""


def changed_windows(frames: Sequence[Tensor]) -> list[Window | None]:
    """For each pair of neighbours the rectangle around what differs, with a margin; None where nothing does.

    Its sides are multiples of 32 and at least 64, or the frame's. A device is waited for once.

    Args:
        frames: each ``(n, 3, h, w)``, RGB in [0, 1].
    """
    changed = [_changed_cells(frame, after) for frame, after in itertools.pairwise(frames)]
    if not changed:
        return []
    cells = torch.stack(changed).cpu()
    height, width = frames[0].shape[-2:]
    spans = [(_span(pair.any(1), height), _span(pair.any(0), width)) for pair in cells]
    return [None if rows is None or columns is None else (rows, columns) for rows, columns in spans]


def _changed_cells(frame: Tensor, after: Tensor) -> Tensor:
    """Which cells do not rest, ``(rows, columns)``."""
    difference = (after.float() - frame.float()).abs().mean(1, keepdim=True)
    return (F.avg_pool2d(difference, _CELL, ceil_mode=True, count_include_pad=False) > _STILL)[:, 0].any(0)


def _span(changed: Tensor, size: int) -> slice | None:
    """The rows, or columns, of a window in a frame that has ``size`` of them."""
    numbers = changed.nonzero()[:, 0].tolist()
    if not numbers:
        return None
    first, last = max(numbers[0] * _CELL - _MARGIN, 0), min((numbers[-1] + 1) * _CELL + _MARGIN, size)
    side = min(max(-(-(last - first) // _MULTIPLE) * _MULTIPLE, SMALLEST), size)
    start = min(first, size - side)
    return slice(start, start + side)
