"""Frames that are too small for the flow network."""

import torch
from torch import Tensor

SMALLEST = 64
"""Frames with a shorter side are extended to it by reflection: SPyNet has no coarsest level below 33."""


def extend(frame: Tensor) -> Tensor:
    """Reflect ``(..., h, w)`` right and bottom until both sides reach `SMALLEST`, as often as that takes."""
    for dim in (-2, -1):
        size = frame.shape[dim]
        if size < SMALLEST:
            period = max(2 * (size - 1), 1)
            index = (torch.arange(SMALLEST, device=frame.device) + size - 1) % period - (size - 1)
            frame = frame.index_select(dim, index.abs())
    return frame
