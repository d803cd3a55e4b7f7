"""VapourSynth's planes to a frame as convolutions read it."""

import logging
from functools import cache

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


@cache
def _kernel_compiles(planes: torch.dtype, frame: torch.dtype) -> bool:
    """Whether there is CuPy, with CUDA libraries that fit: it finds them by itself, not by way of torch."""
    from vsvsr.triton_kernels.unpack_planes import kernel  # type: ignore[import-not-found]  # its own folder

    try:
        kernel(planes, frame).compile()
    except ModuleNotFoundError:
        return False
    except Exception as error:  # CuPy's own, its compiler's, and the loader's
        _log.warning("frames are unpacked without CuPy: %s", " ".join(str(error).split()))
        return False
    return True


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
    if planes.is_cuda and torch.version.hip is None and _kernel_compiles(planes.dtype, dtype):
        fused: Tensor = fused_unpack_planes(planes, width, dtype)
        return fused
    return unpack_planes_reference(planes, width, dtype)


@torch.library.custom_op("vsvsr::unpack_planes", mutates_args=())
def fused_unpack_planes(planes: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The kernel, for CUDA tensors."""
    from vsvsr.triton_kernels.unpack_planes import (
        unpack_planes as launch,
    )

    return launch(planes, width, dtype)  # type: ignore[no-any-return]


@fused_unpack_planes.register_fake
def _(planes: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    return planes.new_empty((1, planes.shape[1], width, 3), dtype=dtype).permute(0, 3, 1, 2)


def unpack_planes_reference(planes: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The plain form of ``unpack_planes``."""
    return planes[None, ..., :width].to(dtype, copy=True, memory_format=torch.channels_last)
