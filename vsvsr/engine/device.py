"""Which device computes, and in which type."""

import torch

from vsvsr.errors import check


def choose_device(index: int | None) -> torch.device:
    """The device of ``device_index``: -1 the CPU, None the first GPU or else the CPU.

    Raises:
        UserError: there is no such device.
    """
    count = torch.cuda.device_count()
    if index is None:
        index = 0 if count else -1
    allowed = f"-1 (CPU) to {count - 1}" if count else "-1 (CPU); this machine has no CUDA device"
    check(-1 <= index < count, "device_index", index, allowed)
    return torch.device("cpu") if index < 0 else torch.device("cuda", index)


def compute_type(video_format: str, device: torch.device) -> torch.dtype:
    """fp16 for RGBH on a GPU. CPUs have no fast fp16: there the network computes in fp32 for both formats."""
    return torch.float16 if video_format == "RGBH" and device.type != "cpu" else torch.float32
