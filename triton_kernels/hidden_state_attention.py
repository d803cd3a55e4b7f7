"""Selective cross attention over filtered copies of a hidden state, in one pass."""

# ruff: noqa: N803 - compile-time constants are upper case in Triton

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def hidden_state_attention_kernel(
    query,
    key,
    value,
    filters,
    result,
    height,
    width,
    scale,
    query_n,
    query_c,
    query_y,
    query_x,
    key_n,
    key_c,
    key_y,
    key_x,
    value_n,
    value_c,
    value_y,
    value_x,
    result_n,
    result_c,
    result_y,
    result_x,
    KEY_CHANNELS: tl.constexpr,
    VALUE_CHANNELS: tl.constexpr,
    MEMBERS: tl.constexpr,
    PADDED_MEMBERS: tl.constexpr,
    SIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """``softmax_i(<Q, F_i * K> / sqrt(d))``, then ``sum_i a_i (F_i * V)``, with replicated borders.

    Source: "Mitigating Artifacts in Real-World Video Super-Resolution Models" (FastRealVSR), eq. 5 to 8, with the
    filters after the convolutions. A filter is linear, so with ``s_t(p) = <Q(p), K(p + t)>`` the logits are
    ``sum_t F_i[t] s_t`` and the result is ``sum_t (sum_i a_i F_i[t]) V(p + t)``: no filtered map is ever stored.

    One program per ``ROWS x COLUMNS`` pixels of an item; channels in blocks of ``CHANNELS``; sums in fp32.

    Shapes:
        query, key: ``(n, KEY_CHANNELS, height, width)``, any strides.
        value, result: ``(n, VALUE_CHANNELS, height, width)``, any strides.
        filters: ``(MEMBERS, SIDE, SIDE)`` fp32, contiguous.
    """
    item = tl.program_id(2).to(tl.int64)
    pixel = tl.arange(0, ROWS * COLUMNS)
    y = tl.program_id(1) * ROWS + pixel // COLUMNS
    x = tl.program_id(0) * COLUMNS + pixel % COLUMNS
    inside = (y < height) & (x < width)
    member = tl.arange(0, PADDED_MEMBERS)
    channel = tl.arange(0, CHANNELS)
    radius = SIDE // 2
    taps = SIDE * SIDE

    query += item * query_n
    key += item * key_n
    value += item * value_n
    result += item * result_n

    logits = tl.zeros((PADDED_MEMBERS, ROWS * COLUMNS), dtype=tl.float32)
    for first in range(0, KEY_CHANNELS, CHANNELS):
        c = first + channel
        mask = (c < KEY_CHANNELS)[:, None] & inside[None, :]
        q = tl.load(query + c[:, None] * query_c + (y * query_y + x * query_x)[None, :], mask=mask, other=0.0)
        q = q.to(tl.float32) * scale
        for tap in range(taps):
            near_y = tl.minimum(tl.maximum(y + tap // SIDE - radius, 0), height - 1)
            near_x = tl.minimum(tl.maximum(x + tap % SIDE - radius, 0), width - 1)
            k = tl.load(key + c[:, None] * key_c + (near_y * key_y + near_x * key_x)[None, :], mask=mask, other=0.0)
            product = tl.sum(q * k.to(tl.float32), axis=0)
            weight = tl.load(filters + member * taps + tap, mask=member < MEMBERS, other=0.0)
            logits += weight[:, None] * product[None, :]

    logits = tl.where((member < MEMBERS)[:, None], logits, float("-inf"))
    attention = tl.exp(logits - tl.max(logits, axis=0)[None, :])
    attention = attention / tl.sum(attention, axis=0)[None, :]

    for first in range(0, VALUE_CHANNELS, CHANNELS):
        c = first + channel
        mask = (c < VALUE_CHANNELS)[:, None] & inside[None, :]
        total = tl.zeros((CHANNELS, ROWS * COLUMNS), dtype=tl.float32)
        for tap in range(taps):
            near_y = tl.minimum(tl.maximum(y + tap // SIDE - radius, 0), height - 1)
            near_x = tl.minimum(tl.maximum(x + tap % SIDE - radius, 0), width - 1)
            places = c[:, None] * value_c + (near_y * value_y + near_x * value_x)[None, :]
            v = tl.load(value + places, mask=mask, other=0.0)
            weight = tl.load(filters + member * taps + tap, mask=member < MEMBERS, other=0.0)
            total += tl.sum(weight[:, None] * attention, axis=0)[None, :] * v.to(tl.float32)
        places = c[:, None] * result_c + (y * result_y + x * result_x)[None, :]
        tl.store(result + places, total.to(result.dtype.element_ty), mask=mask)


ROWS, COLUMNS, CHANNELS, WARPS = 4, 32, 32, 4
"""Pixels and channels of a program, and its warps: a warp reads rows of 32 pixels; no target spills."""


def hidden_state_attention(query: Tensor, key: Tensor, value: Tensor, filters: Tensor) -> Tensor:
    """Launch the kernel.

    Args:
        query: ``(n, d, h, w)``.
        key: ``(n, d, h, w)``.
        value: ``(n, c, h, w)``.
        filters: the members' filters ``(members, k, k)``, odd ``k``.

    Returns:
        ``(n, c, h, w)``, type and memory format of ``value``.
    """
    result = torch.empty_like(value)
    n, key_channels, height, width = query.shape
    members, side = filters.shape[:2]
    grid = (triton.cdiv(width, COLUMNS), triton.cdiv(height, ROWS), n)
    hidden_state_attention_kernel[grid](
        query,
        key,
        value,
        filters.float().contiguous(),
        result,
        height,
        width,
        1 / math.sqrt(key_channels),
        *query.stride(),
        *key.stride(),
        *value.stride(),
        *result.stride(),
        KEY_CHANNELS=key_channels,
        VALUE_CHANNELS=value.shape[1],
        MEMBERS=members,
        PADDED_MEMBERS=triton.next_power_of_2(members),
        SIDE=side,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        CHANNELS=CHANNELS,
        num_warps=WARPS,
    )
    return result
