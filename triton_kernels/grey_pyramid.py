"""Grey pictures of two frames and their pyramids, in one pass."""

# ruff: noqa: N803 - compile-time constants are upper case in Triton

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def grey_pyramid_kernel(
    reference,
    support,
    result,
    items,
    height,
    width,
    padded_height,
    padded_width,
    reference_n,
    reference_c,
    reference_y,
    reference_x,
    support_n,
    support_c,
    support_y,
    support_x,
    LEVELS: tl.constexpr,
    SIDE: tl.constexpr,
):
    """The mean of three channels, then averages of 2x2 pixels again and again: ``F.avg_pool2d``.

    One program per ``SIDE x SIDE`` pixels of a frame, which hold whole pixels of every level; sums in fp32.

    Shapes:
        reference, support: ``(items, 3, height, width)``, any strides.
        result: fp32, contiguous: for every level, the finest first, ``(2 items, padded_height / 2 ** level,
            padded_width / 2 ** level)``, references before supports. Padding repeats the border.
    """
    item = tl.program_id(2).to(tl.int64)
    y = tl.minimum(tl.program_id(1) * SIDE + tl.arange(0, SIDE), height - 1)[:, None]
    x = tl.minimum(tl.program_id(0) * SIDE + tl.arange(0, SIDE), width - 1)[None, :]
    grey = tl.zeros((SIDE, SIDE), dtype=tl.float32)
    if item < items:
        for channel in tl.static_range(3):
            place = reference + item * reference_n + channel * reference_c + y * reference_y + x * reference_x
            grey += tl.load(place).to(tl.float32)
    else:
        for channel in tl.static_range(3):
            place = support + (item - items) * support_n + channel * support_c + y * support_y + x * support_x
            grey += tl.load(place).to(tl.float32)
    grey = grey / 3.0
    for level in tl.static_range(LEVELS):
        rows = tl.program_id(1) * (SIDE >> level) + tl.arange(0, SIDE >> level)[:, None]
        columns = tl.program_id(0) * (SIDE >> level) + tl.arange(0, SIDE >> level)[None, :]
        level_height = padded_height >> level
        level_width = padded_width >> level
        place = result + item * level_height * level_width + rows * level_width + columns
        tl.store(place, grey, mask=(rows < level_height) & (columns < level_width))
        # Not items.to: the number of pairs of a filter, 1, is a constant to the compiler.
        result += tl.cast(2 * items, tl.int64) * level_height * level_width
        if level + 1 < LEVELS:
            quads = tl.reshape(grey, (SIDE >> (level + 1), 2, SIDE >> (level + 1), 2))
            grey = tl.sum(tl.sum(quads, axis=3), axis=1) * 0.25


SIDE, WARPS = 32, 4
"""Pixels of a program's square, at least ``2 ** (levels - 1)``, and its warps."""


def grey_pyramid(reference: Tensor, support: Tensor, levels: int) -> Tensor:
    """Launch the kernel; shapes as there. Sides of the finest level are multiples of ``2 ** (levels - 1)``."""
    n, _, height, width = reference.shape
    multiple = 2 ** (levels - 1)
    padded_height, padded_width = height + -height % multiple, width + -width % multiple
    pixels = sum((padded_height >> level) * (padded_width >> level) for level in range(levels))
    result = torch.empty(2 * n * pixels, dtype=torch.float32, device=reference.device)
    side = max(SIDE, multiple)
    grey_pyramid_kernel[(triton.cdiv(padded_width, side), triton.cdiv(padded_height, side), 2 * n)](
        reference,
        support,
        result,
        n,
        height,
        width,
        padded_height,
        padded_width,
        *reference.stride(),
        *support.stride(),
        LEVELS=levels,
        SIDE=side,
        num_warps=WARPS,
    )
    return result
