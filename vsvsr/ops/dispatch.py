"""When the fused kernels run."""

import importlib.util
import logging
from functools import cache

import torch
from torch import Tensor

OLDEST_TRITON = (3, 6)
"""This version and the newest compile the kernels without spilling registers; 3.4 spills some."""

_log = logging.getLogger(__name__)


@cache
def kernel_problem(device: torch.device) -> str | None:
    """What keeps the fused kernels from running on a CUDA device; None if they run.

    They need an NVIDIA GPU of compute capability 8.0 or newer: older ones lack the tensor-core instructions the kernels
    are built on. And Triton, which compiles a part of its own with a C compiler when it launches its first kernel.
    """
    if torch.version.hip is not None:
        return "they are for NVIDIA GPUs"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "they need an NVIDIA GPU of compute capability 8.0 or newer"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    problem = triton_problem() or launch_problem(device)
    if problem is not None:
        _log.warning("PyTorch runs in place of the fused kernels: %s", problem)
    return problem


def triton_problem() -> str | None:
    """What is wrong with the Triton that is installed; None if nothing is."""
    try:
        import triton
    except Exception as error:  # a library that does not load, whatever its package raises then
        return _described(error)
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version >= OLDEST_TRITON:
        return None
    return f"Triton {triton.__version__} is older than {'.'.join(map(str, OLDEST_TRITON))}"


def launch_problem(device: torch.device) -> str | None:
    """What goes wrong when one small kernel is launched; None if nothing does."""
    try:
        from vsvsr.triton_kernels.probe import answer  # type: ignore[import-not-found]  # its own folder

        with torch.cuda.device(device):
            given = answer(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler that is not there, a header, a driver: each raises something else
        return _described(error)
    return None if given == 42 else f"a kernel that should give 42 gave {given}"


def _described(error: Exception) -> str:
    """In one line."""
    return f"{type(error).__name__}: {str(error).partition('\n')[0]}"


def runs_kernels(*tensors: Tensor) -> bool:
    """Whether fused kernels take these tensors: on a GPU where they run, and without a gradient, for they have none."""
    if not all(x.is_cuda for x in tensors):
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return False
    return kernel_problem(tensors[0].device) is None
