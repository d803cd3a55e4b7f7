"""The residual of a residual block on a list of tiles, as two implicit matrix products."""

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
    result,
    total,
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

    One program per ``PIXELS`` pixels, counted through all listed tiles, and ``OUTPUTS`` channels.

    Shapes, all contiguous, with ``c = CHANNELS`` and ``s = TILE + 2``:
        weight: ``(3, 3, c, c)``, input channel before output channel; bias: ``(c,)``.
        tiles: int64 ``(k,)``, numbers of tiles, item by item, row by row.
        FIRST: source ``(n * height * width, c)`` or longer, result ``(k * s * s, c)``; total ``k * s * s``.
        else: source ``(k * s * s, c)``, result ``(n * height * width, c)`` or longer; total ``k * TILE * TILE``.
    """
    side: tl.constexpr = TILE + 2 if FIRST else TILE
    halo: tl.constexpr = 1 if FIRST else 0
    chunks: tl.constexpr = (CHANNELS + INPUTS - 1) // INPUTS
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
    height: int,
    width: int,
    tile: int,
) -> None:
    """Write ``conv2(relu(conv1(x)))`` to ``held`` on the listed tiles.

    Args:
        x: maps as pixels ``(n * height * width, c)``, or more rows.
        held: likewise; changed.
        weight1: ``(c, c, 3, 3)``.
        bias1: ``(c,)``.
        weight2: as ``weight1``.
        bias2: as ``bias1``.
        tiles: numbers of the tiles, int64 ``(k,)``.
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
            weight.permute(2, 3, 1, 0).contiguous(),
            bias,
            tiles,
            result,
            total,
            height,
            width,
            -(-height // tile),
            -(-width // tile),
            CHANNELS=channels,
            TILE=tile,
            FIRST=first,
            **sizes,
        )
