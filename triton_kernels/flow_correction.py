"""The learned correction of a flow: three 3x3 convolutions, with what lies before, between and behind them."""

# ruff: noqa: N803 - compile-time constants are upper case in Triton

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sampling import sample


@triton.jit
def flow_correction_kernel(
    reference,
    support,
    flow,
    source,
    weight,
    bias,
    result,
    height,
    width,
    weight_o,
    weight_i,
    weight_y,
    weight_x,
    LAYER: tl.constexpr,
    CHANNELS: tl.constexpr,
    SLOPE: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """One of three convolutions with zero padding: ``flow + conv(leaky(conv(leaky(conv(inputs)))))``.

    The inputs are five: both pictures minus 0.5, the support warped by ``flow``; eight times their difference; and the
    flow. Layer 0 makes them on its way, for every tap anew: what it reads again lies in the caches. Layer 2 adds the
    flow. Sums in fp32.

    One program per ``PIXELS`` pixels of an item.

    Shapes, all fp32, contiguous but for the weights:
        reference, support: ``(n, height, width)``; flow: ``(n, 2, height, width)``.
        source: of layers 1 and 2 ``(n, height, width, CHANNELS)``.
        weight: ``(CHANNELS, 5, 3, 3)``, ``(CHANNELS, CHANNELS, 3, 3)``, ``(2, CHANNELS, 3, 3)``; bias to match.
        result: ``(n, height, width, CHANNELS)``; of layer 2 like ``flow``.
    """
    item = tl.program_id(1).to(tl.int64)
    area = height * width
    reference += item * area
    support += item * area
    flow += item * 2 * area
    source += item * area * CHANNELS
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    listed = pixel < area
    y = pixel // width
    x = pixel % width
    channel = tl.arange(0, CHANNELS)

    sums = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    other_sums = tl.zeros((PIXELS, CHANNELS), dtype=tl.float32)
    for tap in range(9):
        near_y = y + tap // 3 - 1
        near_x = x + tap % 3 - 1
        inside = listed & (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
        taps = weight + tap // 3 * weight_y + tap % 3 * weight_x
        if LAYER == 0:
            place = tl.where(inside, near_y * width + near_x, 0)
            shift_x = tl.load(flow + place)
            shift_y = tl.load(flow + area + place)
            here = tl.load(reference + place)
            there = sample(support, place // width, place % width, shift_y, shift_x, height, width)
            scale = tl.where(inside, 1.0, 0.0)
            sums += (scale * (here - 0.5))[:, None] * tl.load(taps + channel * weight_o)[None, :]
            sums += (scale * (there - 0.5))[:, None] * tl.load(taps + channel * weight_o + weight_i)[None, :]
            sums += (scale * (here - there) * 8.0)[:, None] * tl.load(taps + channel * weight_o + 2 * weight_i)[None, :]
            sums += (scale * shift_x)[:, None] * tl.load(taps + channel * weight_o + 3 * weight_i)[None, :]
            sums += (scale * shift_y)[:, None] * tl.load(taps + channel * weight_o + 4 * weight_i)[None, :]
        else:
            places = (near_y * width + near_x)[:, None] * CHANNELS + channel[None, :]
            near = tl.load(source + places, mask=inside[:, None], other=0.0)
            if LAYER == 1:
                weights = tl.load(taps + channel[None, :] * weight_o + channel[:, None] * weight_i)
                sums = tl.dot(near, weights, sums, input_precision="ieee")
            else:
                sums += near * tl.load(taps + channel * weight_i)[None, :]
                other_sums += near * tl.load(taps + weight_o + channel * weight_i)[None, :]

    if LAYER == 2:
        result += item * 2 * area
        to_x = tl.sum(sums, axis=1) + tl.load(bias) + tl.load(flow + pixel, mask=listed, other=0.0)
        to_y = tl.sum(other_sums, axis=1) + tl.load(bias + 1) + tl.load(flow + area + pixel, mask=listed, other=0.0)
        tl.store(result + pixel, to_x, mask=listed)
        tl.store(result + area + pixel, to_y, mask=listed)
    else:
        result += item * area * CHANNELS
        sums += tl.load(bias + channel)[None, :]
        sums = tl.where(sums >= 0.0, sums, sums * SLOPE)
        tl.store(result + pixel[:, None] * CHANNELS + channel[None, :], sums, mask=listed[:, None])


PIXELS, WARPS, STAGES = 128, 4, 1
"""Pixels of a program, its warps, and stages: more only cost registers and shared memory."""


def flow_correction(
    reference: Tensor, support: Tensor, flow: Tensor, weights: list[Tensor], biases: list[Tensor], slope: float
) -> Tensor:
    """Launch the kernel three times.

    Args:
        reference: grey, ``(n, 1, h, w)`` fp32.
        support: likewise.
        flow: ``(n, 2, h, w)`` fp32.
        weights: of the three convolutions, in any layout; as many channels between them as a power of two, 16 or more.
        biases: likewise.
        slope: of the leaky ReLU.

    Returns:
        ``(n, 2, h, w)``.
    """
    n, _, height, width = reference.shape
    channels = len(weights[0])
    reference, support, flow = reference.contiguous(), support.contiguous(), flow.contiguous()
    source = reference  # not read by the first
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        shape = (n, 2, height, width) if layer == 2 else (n, height, width, channels)
        result = torch.empty(shape, dtype=torch.float32, device=reference.device)
        flow_correction_kernel[(triton.cdiv(height * width, PIXELS), n)](
            reference,
            support,
            flow,
            source,
            weight,
            bias,
            result,
            height,
            width,
            *weight.stride(),
            LAYER=layer,
            CHANNELS=channels,
            SLOPE=slope,
            PIXELS=PIXELS,
            num_warps=WARPS,
            num_stages=STAGES,
        )
        source = result
    return result
