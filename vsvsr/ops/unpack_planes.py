"""VapourSynth's planes to a frame as convolutions read it."""

import logging
from functools import cache

import torch
from torch import Tensor

LOWEST, HIGHEST = -1.0, 2.0
"""What networks may see, where pictures are in [0, 1]: room for the overshoot of any resizer, and no more than a
recurrence's state forgets again."""

_log = logging.getLogger(__name__)


@cache
def _kernel_compiles(planes: torch.dtype, frame: torch.dtype) -> bool:
    """Whether there is CuPy 14, with CUDA libraries that fit: it finds them by itself, not by way of torch."""
    from vsvsr.triton_kernels.unpack_planes import kernel  # type: ignore[import-not-found]  # its own folder

    try:
        kernel(planes, frame).compile()
        import cupy

        if not hasattr(cupy.cuda.Stream, "from_external"):
            raise ImportError(f"CuPy {cupy.__version__} is older than 14")
    except ModuleNotFoundError:
        return False
    except Exception as error:  # CuPy's own, its compiler's, and the loader's
        _log.warning("frames are unpacked without CuPy: %s", " ".join(str(error).split()))
        return False
    return True


def unpack_planes(planes: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The picture in rows with padding, bounded and converted, pixel by pixel.

    A sample x becomes ``min(max(x, LOWEST), HIGHEST)``, infinities too, and NaN becomes 0. To fp16 rounds to nearest,
    ties to even.

    Args:
        planes: ``(3, h, pitch)``, contiguous, fp32 or fp16.
        width: pixels of a row that belong to the picture.
        dtype: of the result, fp32 or fp16.

    Returns:
        The frame ``(1, 3, h, width)``, channels last, memory of its own; and whether a sample of it was not finite, a
        bool of one element.
    """
    if planes.is_cuda and torch.version.hip is None and _kernel_compiles(planes.dtype, dtype):
        frame, non_finite = fused_unpack_planes(planes, width, dtype)
        return frame, non_finite.view(torch.bool)
    return unpack_planes_reference(planes, width, dtype)


@torch.library.custom_op("vsvsr::unpack_planes", mutates_args=())
def fused_unpack_planes(planes: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The kernel, for CUDA tensors; the second result is uint8."""
    from vsvsr.triton_kernels.unpack_planes import (
        unpack_planes as launch,
    )

    return launch(planes, width, dtype, LOWEST, HIGHEST)  # type: ignore[no-any-return]


@fused_unpack_planes.register_fake
def _(planes: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    frame = planes.new_empty((1, planes.shape[1], width, 3), dtype=dtype).permute(0, 3, 1, 2)
    return frame, planes.new_empty(1, dtype=torch.uint8)


def unpack_planes_reference(planes: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The plain form of ``unpack_planes``."""
    samples = planes[None, ..., :width]
    bounded = samples.nan_to_num(0.0, HIGHEST, LOWEST).clamp_(LOWEST, HIGHEST)
    return bounded.to(dtype, memory_format=torch.channels_last), ~samples.isfinite().all()[None]
