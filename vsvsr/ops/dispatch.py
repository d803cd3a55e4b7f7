"""When the fused kernels run."""

import importlib.util
import logging
from functools import cache

import torch
from torch import Tensor

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
    problem = launch_problem(device)
    if problem is not None:
        _log.warning("PyTorch runs in place of the fused kernels: %s", problem)
    return problem


def launch_problem(device: torch.device) -> str | None:
    """What goes wrong when one small kernel is launched; None if nothing does."""
    try:
        from vsvsr.triton_kernels.probe import answer  # type: ignore[import-not-found]  # its own folder

        with torch.cuda.device(device):
            given = answer(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler that is not there, a header, a driver: each raises something else
        lines = str(error).split("\n")
        return f"{type(error).__name__}: {lines[0]}"
    return None if given == 42 else f"a kernel that should give 42 gave {given}"


def runs_kernels(*tensors: Tensor) -> bool:
    """Whether fused kernels take these tensors: on a GPU where they run, and without a gradient, for they have none."""
    if not all(x.is_cuda for x in tensors):
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return False
    return kernel_problem(tensors[0].device) is None
