"""Which device computes, and in which type."""

import ctypes
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vsvsr.errors import UserError, check, shown

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GPU:
    """A GPU that torch counts.

    Attributes:
        index: its CUDA device.
        name: of the card, empty if it cannot be used.
        problem: what keeps torch from computing on it; None if it can be used.
    """

    index: int
    name: str
    problem: str | None


def gpus() -> Iterator[GPU]:
    """Every GPU, tried. The count alone comes from the driver and says nothing about this torch."""
    for index in range(torch.cuda.device_count()):
        problem = _problem(torch.device("cuda", index))
        yield GPU(index, torch.cuda.get_device_name(index) if problem is None else "", problem)


def untried_gpus() -> tuple[str, int]:
    """Torch's type of the GPUs that it has in place of CUDA's, such as xpu or mps, and how many; nothing here has run
    on them."""
    device = torch.accelerator.current_accelerator()
    if device is None or device.type == "cuda":
        return "", 0
    return device.type, torch.accelerator.device_count()


def choose_device(index: int | None) -> torch.device:
    """The device of ``device_index``: -1 the CPU, None the first CUDA device or else the CPU.

    Raises:
        UserError: there is no such device, or torch cannot compute on it and it was asked for.
    """
    kind, count = "cuda", torch.cuda.device_count()
    wanted = (0 if count else -1) if index is None else index
    if wanted >= 0 and not count:
        kind, count = untried_gpus()
    allowed = f"-1 (CPU) to {count - 1}" if count else "-1 (CPU); this machine has no CUDA device"
    check(-1 <= wanted < count, "device_index", index, allowed)
    if wanted < 0:
        return torch.device("cpu")
    device = torch.device(kind, wanted)
    problem = _problem(device)
    if problem is None:
        return device
    if index is not None:
        raise UserError(f"device_index={index}: {problem}; give device_index=-1 for the CPU")
    _log.warning("the CPU is used: %s", problem)
    return torch.device("cpu")


def sample_type(video_format: str) -> torch.dtype:
    """Of the samples in the planes of RGBH and RGBS."""
    return torch.float16 if video_format == "RGBH" else torch.float32


def compute_type(video_format: str, device: torch.device, *, fp16: bool) -> torch.dtype:
    """fp16 on a GPU for RGBH, or where it is asked for. CPUs have no fast fp16: there the network computes in fp32."""
    half = (fp16 or video_format == "RGBH") and device.type != "cpu"
    return torch.float16 if half else torch.float32


def _problem(device: torch.device) -> str | None:
    """What one operation on the GPU raises, in one line with the versions that must fit together."""
    try:
        torch.ones(1, device=device).add_(1).item()
    except torch.OutOfMemoryError:
        return None  # it works, it is full: what follows says so
    except (RuntimeError, AssertionError) as error:  # by CUDA; by a torch without CUDA
        reason = shown(str(error).partition("\n")[0])
        if device.type != "cuda":
            return f"{device} cannot be used: {reason}"
        built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
        return f"GPU {device.index} cannot be used: {reason} (its driver supports CUDA {cuda_driver()}, {built})"
    return None


def cuda_driver() -> str:
    """The newest CUDA that the driver supports, or "unknown"."""
    version = ctypes.c_int(0)
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        library.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return "unknown"
    return f"{version.value // 1000}.{version.value % 1000 // 10}"
