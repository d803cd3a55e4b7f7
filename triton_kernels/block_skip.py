"""The residual of a residual block on a list of tiles, as two implicit matrix products; and that list."""

# ruff: noqa: N803 - compile-time constants are upper case in Triton

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def tile_convolution_kernel(
    source,
    weight,
    bias,
    tiles,
    count,
    result,
    height,
    width,
    rows,
    columns,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
    FIRST: tl.constexpr,
    PIXELS: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """One 3x3 convolution of ``conv2(relu(conv1(x)))`` on listed tiles, exact at the borders of the frame.

    Source: "SkipVSR: Adaptive Patch Routing for Video Super-Resolution with Inter-Frame Mask", with tiles of
    whole frames instead of patches: ``x + P F(x)``, P constant on tiles. The first convolution reads the map and writes
    each tile with a halo of 1 to a list, ReLU applied, and zero outside the frame, as the padding of a dense second
    convolution would be. The second reads the list and writes the tiles back.
    ``y(p) = b + sum_t W_t x(p + t)``: nine products with gathered rows, fp32 sums. The taps are a loop at run time:
    unrolled, they spill.

    One program per ``PIXELS`` pixels, counted through all listed tiles, and ``OUTPUTS`` channels. There are enough for
    all tiles of the grid; those behind the ``count`` that are active end at once, so that the host need not know it.

    Shapes, all contiguous, with ``c = CHANNELS`` and ``s = TILE + 2``:
        weight: ``(3, 3, c, c)``, input channel before output channel; bias: ``(c,)``.
        tiles: int64, numbers of tiles, item by item, row by row, the active ones in front; count: int64 ``(1,)``.
        FIRST: source ``(n * height * width, c)`` or longer, result ``(tiles * s * s, c)``.
        else: source ``(tiles * s * s, c)``, result ``(n * height * width, c)`` or longer.
    """
    side: tl.constexpr = TILE + 2 if FIRST else TILE
    halo: tl.constexpr = 1 if FIRST else 0
    chunks: tl.constexpr = (CHANNELS + INPUTS - 1) // INPUTS
    total = tl.load(count).to(tl.int64) * (side * side)
    if tl.program_id(0).to(tl.int64) * PIXELS >= total:
        return
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    listed = pixel < total
    slot = pixel // (side * side)
    within_y = pixel % (side * side) // side
    within_x = pixel % side
    tile = tl.load(tiles + slot, mask=listed, other=0)
    item = tile // (rows * columns)
    y = tile // columns % rows * TILE + within_y - halo
    x = tile % columns * TILE + within_x - halo
    in_frame = listed & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)

    sums = tl.zeros((PIXELS, OUTPUTS), dtype=tl.float32)
    for step in range(9 * chunks):
        tap = step // chunks
        down = tap // 3
        right = tap % 3
        c = step % chunks * INPUTS + tl.arange(0, INPUTS)
        if FIRST:
            near_y = y + down - 1
            near_x = x + right - 1
            readable = listed & (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
            place = (item * height + near_y) * width + near_x
        else:
            readable = in_frame
            place = (slot * (TILE + 2) + within_y + down) * (TILE + 2) + within_x + right
        near = tl.load(
            source + place[:, None] * CHANNELS + c[None, :], mask=readable[:, None] & (c < CHANNELS)[None, :], other=0.0
        )
        w = tl.load(
            weight + (tap * CHANNELS + c[:, None]) * CHANNELS + output[None, :],
            mask=(c < CHANNELS)[:, None] & (output < CHANNELS)[None, :],
            other=0.0,
        )
        sums = tl.dot(near, w, sums, input_precision="ieee")

    sums += tl.load(bias + output, mask=output < CHANNELS, other=0.0).to(tl.float32)[None, :]
    if FIRST:
        sums = tl.where(in_frame[:, None], tl.maximum(sums, 0.0), 0.0)
        place = pixel
        writable = listed
    else:
        place = (item * height + y) * width + x
        writable = in_frame
    tl.store(
        result + place[:, None] * CHANNELS + output[None, :],
        sums.to(result.dtype.element_ty),
        mask=writable[:, None] & (output < CHANNELS)[None, :],
    )


@triton.jit
def choose_tiles_kernel(active, numbers, count, tiles, enough, BLOCK: tl.constexpr):
    """The numbers of the active ones of ``tiles`` in order, and how many; of all, where ``enough`` are active.

    One program, ``BLOCK`` tiles at a time. Shapes: active: uint8 ``(tiles,)``, all 1 afterwards where all run; numbers:
    int64 ``(tiles,)``, of which only the first ``count`` are written; count: int64 ``(1,)``.
    """
    total = tl.zeros((), dtype=tl.int32)
    for first in range(0, tiles, BLOCK):
        place = first + tl.arange(0, BLOCK)
        total += tl.sum((tl.load(active + place, mask=place < tiles, other=0) != 0).to(tl.int32), axis=0)
    everywhere = total >= enough
    found = tl.zeros((), dtype=tl.int32)
    for first in range(0, tiles, BLOCK):
        place = first + tl.arange(0, BLOCK)
        chosen = (tl.load(active + place, mask=place < tiles, other=0) != 0) | (everywhere & (place < tiles))
        ones = chosen.to(tl.int32)
        tl.store(numbers + found + tl.cumsum(ones, axis=0) - ones, place.to(tl.int64), mask=chosen)
        tl.store(active + place, ones.to(tl.uint8), mask=place < tiles)
        found += tl.sum(ones, axis=0)
    tl.store(count, found.to(tl.int64))


BLOCK, WARPS = 1024, 4
"""Tiles that are looked at together, and warps of the one program that does it."""


def choose_tiles(active: Tensor, enough: int) -> tuple[Tensor, Tensor]:
    """Launch the kernel; ``active`` is bool ``(tiles,)``, contiguous, and changed. Returns numbers and count."""
    numbers = torch.empty(len(active), dtype=torch.int64, device=active.device)
    count = torch.empty(1, dtype=torch.int64, device=active.device)
    choose_tiles_kernel[(1,)](
        active.view(torch.uint8), numbers, count, len(active), enough, BLOCK=BLOCK, num_warps=WARPS
    )
    return numbers, count


def blocks(channels: int, dtype: torch.dtype) -> dict[str, int]:
    """Block sizes for maps of ``channels``: fp32 products need more registers and memory."""
    width = min(64, max(16, triton.next_power_of_2(channels)))
    if dtype == torch.float32:
        return {"PIXELS": 64, "INPUTS": min(32, width), "OUTPUTS": width, "num_warps": 4, "num_stages": 2}
    return {"PIXELS": 128, "INPUTS": width, "OUTPUTS": width, "num_warps": 4, "num_stages": 3}


def block_residual(
    x: Tensor,
    held: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    tiles: Tensor,
    count: Tensor,
    height: int,
    width: int,
    tile: int,
) -> None:
    """Write ``conv2(relu(conv1(x)))`` to ``held`` on the first ``count`` of the listed tiles.

    Args:
        x: maps as pixels ``(n * height * width, c)``, or more rows.
        held: likewise; changed.
        weight1: ``(3, 3, c, c)``, input channel before output channel.
        bias1: ``(c,)``.
        weight2: as ``weight1``.
        bias2: as ``bias1``.
        tiles: numbers of the tiles, int64 ``(k,)``.
        count: int64 ``(1,)``, at most k.
        height: of a map.
        width: of a map.
        tile: side of a tile.
    """
    channels = x.shape[1]
    sizes = blocks(channels, x.dtype)
    hidden = x.new_empty(len(tiles) * (tile + 2) ** 2, channels)
    for first, source, weight, bias, result in (
        (True, x, weight1, bias1, hidden),
        (False, hidden, weight2, bias2, held),
    ):
        total = len(tiles) * (tile + 2 * first) ** 2
        tile_convolution_kernel[(triton.cdiv(total, sizes["PIXELS"]), triton.cdiv(channels, sizes["OUTPUTS"]))](
            source,
            weight,
            bias,
            tiles,
            count,
            result,
            height,
            width,
            -(-height // tile),
            -(-width // tile),
            CHANNELS=channels,
            TILE=tile,
            FIRST=first,
            **sizes,
        )
