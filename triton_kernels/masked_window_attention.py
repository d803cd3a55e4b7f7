"""Window attention over several frames for lists of kept queries, windows addressed in place."""

# ruff: noqa: N803 - compile-time constants are upper case in Triton

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def masked_window_attention_kernel(
    query,
    key_value,
    key_value_bias,
    position_bias,
    order,
    counts,
    rows,
    result,
    height,
    width,
    windows_y,
    windows_x,
    scale,
    CHANNELS: tl.constexpr,
    HEADS: tl.constexpr,
    FRAMES: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    QUERIES: tl.constexpr,
    PADDED_POSITIONS: tl.constexpr,
    PADDED_DIM: tl.constexpr,
):
    """``softmax(q k^T / sqrt(d) + B + M) v`` for the kept positions of one window and one head.

    Source: MIA-VSR ("Video Super-Resolution Transformer with Masked Inter&Intra-Frame Attention"), eq. 4 to 6, on
    shifted windows (Swin Transformer). Window ``(i, j)`` holds the pixels
    ``(i WINDOW + r + SHIFT, j WINDOW + s + SHIFT)`` modulo the padded frame: the roll is an address. M is -100 between
    pixels that the roll brought together. Padding has the projections of a zero token, that is, their biases.

    One program per ``QUERIES`` kept positions of a window and head; programs beyond the list end at once. The softmax
    runs over the frames in order (Milakov and Gimelshein, "Online normalizer calculation"), in fp32.

    Shapes, all contiguous, with ``c = CHANNELS``, ``p = WINDOW ** 2`` and ``windows = windows_y * windows_x``:
        query, result: ``(kept, c)``, kept pixels of the last frame in raster order.
        key_value: ``(n, FRAMES, height, width, 2 c)``, keys before values; key_value_bias: ``(2 c,)``.
        position_bias: ``(HEADS, p, FRAMES * p)``.
        order: int32 ``(n * windows, p)``, positions of each window, kept ones first; counts: int32, how many are kept.
        rows: int32 ``(n, height, width)``, row of ``query`` for every kept pixel.
    """
    positions: tl.constexpr = WINDOW * WINDOW
    blocks: tl.constexpr = (positions + QUERIES - 1) // QUERIES
    dim: tl.constexpr = CHANNELS // HEADS
    program = tl.program_id(0)
    first = program % blocks * QUERIES
    head = program // blocks % HEADS
    window = program // (blocks * HEADS)
    count = tl.load(counts + window)
    if first >= count:
        return

    item = (window // (windows_y * windows_x)).to(tl.int64)
    top = window // windows_x % windows_y * WINDOW + SHIFT
    left = window % windows_x * WINDOW + SHIFT
    d = tl.arange(0, PADDED_DIM)
    place = first + tl.arange(0, QUERIES)
    wanted = place < count
    position = tl.load(order + window.to(tl.int64) * positions + place, mask=wanted, other=0)
    query_y = (top + position // WINDOW) % (windows_y * WINDOW)
    query_x = (left + position % WINDOW) % (windows_x * WINDOW)
    row = tl.load(rows + item * height * width + query_y * width + query_x, mask=wanted, other=0).to(tl.int64)
    query_places = row[:, None] * CHANNELS + head * dim + d[None, :]
    query_mask = wanted[:, None] & (d < dim)[None, :]
    q = tl.load(query + query_places, mask=query_mask, other=0.0)

    key = tl.arange(0, PADDED_POSITIONS)
    key_row = top + key // WINDOW
    key_column = left + key % WINDOW
    key_y = key_row % (windows_y * WINDOW)
    key_x = key_column % (windows_x * WINDOW)
    in_frame = (key_y < height) & (key_x < width)
    # A pixel beyond the padded frame was rolled in from the opposite border.
    query_rolled_y = top + position // WINDOW >= windows_y * WINDOW
    query_rolled_x = left + position % WINDOW >= windows_x * WINDOW
    across = query_rolled_y[:, None] != (key_row >= windows_y * WINDOW)[None, :]
    across |= query_rolled_x[:, None] != (key_column >= windows_x * WINDOW)[None, :]

    key_mask = in_frame[:, None] & (d < dim)[None, :]
    bias_mask = (key < positions)[:, None] & (d < dim)[None, :] & (key_mask == 0)
    key_bias = tl.load(key_value_bias + head * dim + d[None, :] + 0 * key[:, None], mask=bias_mask, other=0.0)
    value_bias = tl.load(
        key_value_bias + CHANNELS + head * dim + d[None, :] + 0 * key[:, None], mask=bias_mask, other=0.0
    )

    highest = tl.full((QUERIES,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((QUERIES,), dtype=tl.float32)
    attended = tl.zeros((QUERIES, PADDED_DIM), dtype=tl.float32)
    for frame in range(FRAMES):
        pixel = (item * FRAMES + frame) * height * width + key_y * width + key_x
        places = key_value + pixel[:, None] * (2 * CHANNELS) + head * dim + d[None, :]
        k = tl.load(places, mask=key_mask, other=0.0) + key_bias
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        displacement = (head * positions + position[:, None]) * (FRAMES * positions) + frame * positions + key[None, :]
        bias = tl.load(position_bias + displacement, mask=wanted[:, None] & (key < positions)[None, :], other=0.0)
        logits += bias.to(tl.float32) + tl.where(across, -100.0, 0.0)
        logits = tl.where((key < positions)[None, :], logits, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(logits, axis=1))
        share = tl.exp(logits - new_highest[:, None])
        correction = tl.exp(highest - new_highest)
        total = total * correction + tl.sum(share, axis=1)
        v = tl.load(places + CHANNELS, mask=key_mask, other=0.0) + value_bias
        attended = attended * correction[:, None] + tl.dot(share.to(v.dtype), v, input_precision="ieee")
        highest = new_highest
    tl.store(result + query_places, (attended / total[:, None]).to(result.dtype.element_ty), mask=query_mask)


STAGES = 1
"""More only cost shared memory."""


def blocks(dtype: torch.dtype) -> tuple[int, int]:
    """Queries of a program, and its warps.

    In half precision a whole window of 8x8, so that its keys and values are read once. In fp32 that spills: the fewest
    rows of a tensor-core product, because lists are short.
    """
    return (16, 4) if dtype == torch.float32 else (64, 8)


def masked_window_attention(
    query: Tensor,
    key_value: Tensor,
    key_value_bias: Tensor,
    position_bias: Tensor,
    order: Tensor,
    counts: Tensor,
    rows: Tensor,
    window: int,
    shift: int,
) -> Tensor:
    """Launch the kernel; shapes as there. Returns ``(kept, c)`` in the type of ``query``."""
    result = torch.empty_like(query)
    _, frames, height, width, _ = key_value.shape
    channels, heads = query.shape[1], len(position_bias)
    queries, warps = blocks(query.dtype)
    masked_window_attention_kernel[(len(counts) * heads * triton.cdiv(window**2, queries),)](
        query,
        key_value,
        key_value_bias,
        position_bias,
        order,
        counts,
        rows,
        result,
        height,
        width,
        triton.cdiv(height, window),
        triton.cdiv(width, window),
        1 / math.sqrt(channels // heads),
        CHANNELS=channels,
        HEADS=heads,
        FRAMES=frames,
        WINDOW=window,
        SHIFT=shift,
        QUERIES=queries,
        PADDED_POSITIONS=max(16, triton.next_power_of_2(window**2)),
        PADDED_DIM=max(16, triton.next_power_of_2(channels // heads)),
        num_warps=warps,
        num_stages=STAGES,
    )
    return result
