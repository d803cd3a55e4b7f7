"""A step of least-squares motion in one pass: warp, gradients, window sums, solution, new flow."""

# ruff: noqa: N803 - compile-time constants are upper case in Triton

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sampling import enlarged, sample


@triton.jit
def window_weights(output, source, size):
    """How much each of ``source`` counts at each of ``output``, both numbers along an axis of ``size`` pixels.

    The mean over five pixels, twice, each with replicated borders; broadcasts. Numbers outside the axis count nothing.
    """
    weights = tl.zeros_like(output + source).to(tl.float32)
    for offsets in range(25):
        centre = tl.minimum(tl.maximum(output + offsets // 5 - 2, 0), size - 1)
        read = tl.minimum(tl.maximum(centre + offsets % 5 - 2, 0), size - 1)
        weights += tl.where(read == source, 1.0 / 25, 0.0)
    return weights


@triton.jit
def lucas_kanade_kernel(
    reference,
    support,
    flow,
    result,
    height,
    width,
    START: tl.constexpr,
    NOISE: tl.constexpr,
    LIMIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """``flow + d`` with ``A d = -b``: A and b are sums over a window of products of the gradients of the mean of both
    pictures, and of them with the difference of the pictures, the support warped by ``flow``.

    Source: Lucas and Kanade, "An Iterative Image Registration Technique with an Application to Stereo Vision" (1981).
    A has ``NOISE`` added on its diagonal; d is at most ``LIMIT`` in each direction. The window is a mean over 5x5
    pixels taken twice, with replicated borders both times, so 9x9 in all.

    One program per rectangle of ``ROWS x COLUMNS`` pixels, of which the outer 5 on each side only serve the others.
    Triton has no access to neighbours in registers, so gradients and window sums along rows and columns are products
    with small banded matrices, in full fp32.

    Flow is read once more or less: 28 bytes a pixel are moved in all, where the eager form moves 800.

    Shapes, all fp32 and contiguous:
        reference, support: ``(n, height, width)``, finite.
        flow: ``(n, 2, height, width)``, or half of that in each direction where START is 2, enlarged on the way; not
            read where it is 0, which begins with no motion.
        result: ``(n, 2, height, width)``.
    """
    halo: tl.constexpr = 5
    item = tl.program_id(2).to(tl.int64)
    reference += item * height * width
    support += item * height * width
    result += item * 2 * height * width
    row = tl.program_id(1) * (ROWS - 2 * halo) - halo + tl.arange(0, ROWS)
    column = tl.program_id(0) * (COLUMNS - 2 * halo) - halo + tl.arange(0, COLUMNS)
    y = tl.minimum(tl.maximum(row, 0), height - 1)[:, None]
    x = tl.minimum(tl.maximum(column, 0), width - 1)[None, :]

    if START == 0:
        shift_x = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        shift_y = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    elif START == 1:
        flow += item * 2 * height * width
        shift_x = tl.load(flow + y * width + x)
        shift_y = tl.load(flow + height * width + y * width + x)
    else:
        quarter = (height // 2) * (width // 2)
        flow += item * 2 * quarter
        shift_x = enlarged(flow, y, x, height, width)
        shift_y = enlarged(flow + quarter, y, x, height, width)

    here = tl.load(reference + y * width + x)
    there = sample(support, y, x, shift_y, shift_x, height, width)
    mean = (here + there) * 0.5
    i = tl.arange(0, ROWS)
    j = tl.arange(0, COLUMNS)
    down = tl.where(i[None, :] == i[:, None] + 1, 0.5, 0.0) - tl.where(i[None, :] == i[:, None] - 1, 0.5, 0.0)
    across = tl.where(j[:, None] == j[None, :] + 1, 0.5, 0.0) - tl.where(j[:, None] == j[None, :] - 1, 0.5, 0.0)
    dx = tl.dot(mean, across, input_precision="ieee")
    dy = tl.dot(down, mean, input_precision="ieee")
    dt = there - here

    over_rows = window_weights(row[:, None], row[None, :], height)
    over_columns = window_weights(column[None, :], column[:, None], width)
    xx = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    xy = xx
    yy = xx
    xt = xx
    yt = xx
    # A loop at run time: side by side, the five sums spill.
    for moment in range(5):
        left = tl.where(moment < 2, dx, tl.where(moment == 3, dx, dy))
        right = tl.where(moment == 0, dx, tl.where(moment < 3, dy, dt))
        rows = tl.dot(over_rows, left * right, input_precision="ieee")
        average = tl.dot(rows, over_columns, input_precision="ieee")
        xx = tl.where(moment == 0, average, xx)
        xy = tl.where(moment == 1, average, xy)
        yy = tl.where(moment == 2, average, yy)
        xt = tl.where(moment == 3, average, xt)
        yt = tl.where(moment == 4, average, yt)
    xx += NOISE
    yy += NOISE
    determinant = xx * yy - xy * xy
    step_x = (xy * yt - yy * xt) / determinant
    step_y = (xy * xt - xx * yt) / determinant
    step_x = tl.minimum(tl.maximum(step_x, -LIMIT), LIMIT)
    step_y = tl.minimum(tl.maximum(step_y, -LIMIT), LIMIT)

    own = (i >= halo) & (i < ROWS - halo) & (row < height)
    own = own[:, None] & ((j >= halo) & (j < COLUMNS - halo) & (column < width))[None, :]
    tl.store(result + y * width + x, shift_x + step_x, mask=own)
    tl.store(result + height * width + y * width + x, shift_y + step_y, mask=own)


ROWS, COLUMNS, WARPS = 32, 32, 8
"""Pixels of a program, the halo included, and its warps: the products grow with the sides, the halo's share shrinks."""


def lucas_kanade(reference: Tensor, support: Tensor, flow: Tensor | None, noise: float, limit: float) -> Tensor:
    """Launch the kernel.

    Args:
        reference: grey, ``(n, 1, h, w)`` fp32.
        support: likewise.
        flow: ``(n, 2, h, w)`` or ``(n, 2, h / 2, w / 2)``; None for no motion.
        noise: see the kernel.
        limit: see the kernel.

    Returns:
        ``(n, 2, h, w)``.
    """
    n, _, height, width = reference.shape
    result = torch.empty((n, 2, height, width), dtype=torch.float32, device=reference.device)
    start = 0 if flow is None else 1 if flow.shape[-2:] == reference.shape[-2:] else 2
    grid = (triton.cdiv(width, COLUMNS - 10), triton.cdiv(height, ROWS - 10), n)
    lucas_kanade_kernel[grid](
        reference.contiguous(),
        support.contiguous(),
        reference if flow is None else flow.contiguous(),
        result,
        height,
        width,
        START=start,
        NOISE=noise,
        LIMIT=limit,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        num_warps=WARPS,
    )
    return result
