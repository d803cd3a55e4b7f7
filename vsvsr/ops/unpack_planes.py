"""VapourSynth's planes to a frame as convolutions read it."""

import importlib.util
from functools import cache

import torch
from torch import Tensor


@cache
def _has_cupy() -> bool:
    return importlib.util.find_spec("cupy") is not None


def unpack_planes(planes: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The picture in rows with padding, converted, pixel by pixel.

    Nothing is clamped. To fp16 rounds to nearest, ties to even; beyond 65504 becomes infinite.

    Args:
        planes: ``(3, h, pitch)``, contiguous, fp32 or fp16.
        width: pixels of a row that belong to the picture.
        dtype: of the result, fp32 or fp16.

    Returns:
        ``(1, 3, h, width)``, channels last, memory of its own.
    """
    if planes.is_cuda and torch.version.hip is None and _has_cupy():
        fused: Tensor = fused_unpack_planes(planes, width, dtype)
        return fused
    return unpack_planes_reference(planes, width, dtype)


@torch.library.custom_op("vsvsr::unpack_planes", mutates_args=())
def fused_unpack_planes(planes: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The kernel, for CUDA tensors where there is CuPy."""
    from vsvsr.triton_kernels.unpack_planes import (  # type: ignore[import-not-found]  # its own folder
        unpack_planes as launch,
    )

    return launch(planes, width, dtype)  # type: ignore[no-any-return]


@fused_unpack_planes.register_fake
def _(planes: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    return planes.new_empty((1, planes.shape[1], width, 3), dtype=dtype).permute(0, 3, 1, 2)


def unpack_planes_reference(planes: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The plain form of ``unpack_planes``."""
    return planes[None, ..., :width].to(dtype, copy=True, memory_format=torch.channels_last)
