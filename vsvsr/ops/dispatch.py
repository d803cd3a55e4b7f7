"""When the fused kernels run."""

import importlib.util
from functools import cache

import torch
from torch import Tensor


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def runs_kernels(*tensors: Tensor) -> bool:
    """Whether fused kernels take these tensors: on an NVIDIA GPU of compute capability 8.0 or newer, with Triton.

    Older GPUs lack the tensor-core instructions the kernels are built on. Kernels have no gradient, so nothing that
    needs one goes there.
    """
    if not all(x.is_cuda for x in tensors) or torch.version.hip is not None or not _has_triton():
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return False
    return torch.cuda.get_device_capability(tensors[0].device) >= (8, 0)
