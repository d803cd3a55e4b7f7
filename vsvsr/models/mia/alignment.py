"""Patch alignment: cells of a feature map moved as a whole (Shi et al., "Rethinking Alignment in Video SR", 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 8


def patch_align(x: Tensor, flow: Tensor) -> Tensor:
    """Sample ``x`` at ``p + mean of the flow over p's cell``, nearest pixel, zeros outside.

    Cells of 8x8 pixels start at the top left; the flow of a cell that reaches beyond the frame is extended by
    reflection. The coordinates go through the normalisation to [-1, 1] of grid sampling, in fp32 and in the same order:
    its rounding decides between two pixels where a mean lies half-way.

    Args:
        x: feature maps ``(n, h, w, c)``.
        flow: displacements in pixels ``(n, 2, h, w)``, horizontal first, fp32.

    Returns:
        ``(n, h, w, c)``.
    """
    batch, height, width, channels = x.shape
    flow = F.pad(flow, (0, -width % CELL, 0, -height % CELL), mode="reflect")
    cells = F.avg_pool2d(flow, CELL)
    means = cells.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)[..., :height, :width]
    column = _nearest(torch.arange(width, device=x.device), means[:, 0], width)
    row = _nearest(torch.arange(height, device=x.device)[:, None], means[:, 1], height)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    item = torch.arange(batch, device=x.device)[:, None, None] * (height * width)
    source = (item + row * width + column).masked_fill(~inside, 0)
    moved = x.reshape(-1, channels).index_select(0, source.flatten()).view_as(x)
    return moved.masked_fill(~inside[..., None], 0.0)


def _nearest(position: Tensor, offset: Tensor, size: int) -> Tensor:
    """The pixel that grid sampling with ``align_corners=True`` reads at ``position + offset``; may lie outside."""
    normalised = 2.0 * (position + offset) / max(size - 1, 1) - 1.0
    return ((normalised + 1.0) * ((size - 1) / 2)).round().long()
