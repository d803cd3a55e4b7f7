"""What follows a convolution, in one pass and in place: bias, activation, residual."""

# ruff: noqa: N803 - compile-time constants are upper case in Triton

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def finish_convolution_kernel(
    maps,
    bias,
    slopes,
    residual,
    total,
    run,
    channels,
    slope,
    ACTIVATION: tl.constexpr,
    ADDS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """``x = act(x + b) + r`` with ``act(v) = v`` where ``v >= 0``, else ``slope v``, in fp32.

    ACTIVATION: 0 none, 1 ReLU, 2 leaky ReLU with ``slope``, 3 PReLU with ``slopes``. ADDS: whether there is an r.

    One program per ``SIZE`` elements, in the order in which they lie in memory.

    Shapes:
        maps, residual: ``total`` elements without gaps, channels repeating every ``channels * run`` elements, ``run``
            of each in a row: 1 where channels are last.
        bias, slopes: ``(channels,)``.
    """
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    mask = place < total
    channel = place // run % channels
    x = tl.load(maps + place, mask=mask, other=0.0).to(tl.float32)
    x += tl.load(bias + channel, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == 1:
        x = tl.where(x < 0.0, 0.0, x)
    elif ACTIVATION == 2:
        x = tl.where(x < 0.0, x * slope, x)
    elif ACTIVATION == 3:
        x = tl.where(x < 0.0, x * tl.load(slopes + channel, mask=mask, other=0.0).to(tl.float32), x)
    if ADDS:
        x += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(maps + place, x.to(maps.dtype.element_ty), mask=mask)


SIZE, WARPS = 1024, 4
"""Elements of a program, and its warps."""


def finish_convolution(
    maps: Tensor, bias: Tensor, slope: float, slopes: Tensor | None, residual: Tensor | None
) -> None:
    """Launch the kernel.

    Args:
        maps: ``(n, c, h, w)`` in either memory format; changed.
        bias: ``(c,)``.
        slope: of the activation below 0, the same for all channels: 1 for none, 0 for ReLU.
        slopes: ``(c,)``, instead.
        residual: what to add in the end, laid out like ``maps``.
    """
    _, channels, height, width = maps.shape
    activation = 3 if slopes is not None else {1.0: 0, 0.0: 1}.get(slope, 2)
    finish_convolution_kernel[(triton.cdiv(maps.numel(), SIZE),)](
        maps,
        bias,
        bias if slopes is None else slopes,
        maps if residual is None else residual,
        maps.numel(),
        height * width if maps.is_contiguous() else 1,
        channels,
        slope,
        ACTIVATION=activation,
        ADDS=residual is not None,
        SIZE=SIZE,
        num_warps=WARPS,
    )
