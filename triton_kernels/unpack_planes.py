"""VapourSynth's planes to a channels-last frame, in CUDA C through CuPy."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

TYPES = {torch.float32: "float", torch.float16: "Half"}

CONVERSIONS = r"""
struct Half { unsigned short bits; };
__device__ bool finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }
__device__ float load(float x) { return x; }
__device__ float load(Half x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }
__device__ void store(float *to, float x) { *to = x; }
__device__ void store(Half *to, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(x)); }
"""
"""Written out, so that no CUDA header is needed. To half precision: nearest, ties to even, infinite beyond 65504."""

KERNEL = r"""
// One thread a pixel: rows are read as they lie, the three channels of a pixel are written next to each other.
extern "C" __global__ void unpack_planes(const SOURCE *planes, RESULT *frame, unsigned char *non_finite, int height,
                                         int width, int pitch, float lowest, float highest)
{
    const long long pixel = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= (long long)height * width)
        return;
    const long long place = pixel / width * pitch + pixel % width;
    for (int channel = 0; channel < 3; channel++) {
        const float x = load(planes[(long long)channel * height * pitch + place]);
        if (!finite(x))
            *non_finite = 1; // whoever writes, writes the same
        // A NaN fails both comparisons.
        store(&frame[pixel * 3 + channel], x < lowest ? lowest : x > highest ? highest : x == x ? x : 0.0f);
    }
}
"""

THREADS = 256


def source(planes: torch.dtype, frame: torch.dtype) -> str:
    """The kernel in CUDA C for planes and a frame of these types."""
    return f"{CONVERSIONS}#define SOURCE {TYPES[planes]}\n#define RESULT {TYPES[frame]}\n{KERNEL}"


@cache
def kernel(planes: torch.dtype, frame: torch.dtype) -> Any:
    """CuPy's kernel for planes and a frame of these types; it is compiled at its first use on a device."""
    import cupy

    return cupy.RawKernel(source(planes, frame), "unpack_planes")


@dataclass(frozen=True)
class _Stream:
    """A stream by CuPy's stream protocol: version and address."""

    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


def unpack_planes(
    planes: Tensor, width: int, dtype: torch.dtype, lowest: float, highest: float
) -> tuple[Tensor, Tensor]:
    """Launch the kernel on torch's current stream.

    Args:
        planes: rows with their padding ``(3, h, pitch)``, contiguous, fp32 or fp16.
        width: pixels of a row that belong to the picture.
        dtype: of the result, fp32 or fp16.
        lowest: lower values become this.
        highest: higher values become this; NaN becomes 0.

    Returns:
        The frame ``(1, 3, h, width)``, channels last; and ``(1,)`` uint8, 1 where a sample of it was not finite.
    """
    import cupy

    _, height, pitch = planes.shape
    frame = planes.new_empty((1, height, width, 3), dtype=dtype)
    non_finite = planes.new_zeros(1, dtype=torch.uint8)
    stream = _Stream(torch.cuda.current_stream(planes.device).cuda_stream)
    # CuPy takes a stream to be of the device that is current when it is told of it.
    with cupy.cuda.Device(planes.device.index), cupy.cuda.Stream.from_external(stream):
        arguments = (cupy.from_dlpack(x) for x in (planes, frame, non_finite))
        sizes = (cupy.int32(size) for size in (height, width, pitch))
        bounds = (cupy.float32(bound) for bound in (lowest, highest))
        kernel(planes.dtype, dtype)((-(-height * width // THREADS),), (THREADS,), (*arguments, *sizes, *bounds))
    return frame.permute(0, 3, 1, 2), non_finite
