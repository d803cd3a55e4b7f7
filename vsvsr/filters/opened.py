"""What a filter hands to the bridge."""

from dataclasses import dataclass
from pathlib import Path

import torch

from vsvsr import weights
from vsvsr.filters.clip import Clip
from vsvsr.filters.settings import SharedSettings, check
from vsvsr.frames import Planes
from vsvsr.streaming import Session


@dataclass(frozen=True)
class Opened:
    """A session ready to make frames.

    Attributes:
        session: makes the frames; all its calls happen on the thread of ``device``.
        device: where the network is.
        scale: output size over source size.
    """

    session: Session[Planes, Planes]
    device: torch.device
    scale: int


def choose_device(index: int | None) -> torch.device:
    """The device of ``device_index``: -1 the CPU, None the first GPU or else the CPU."""
    count = torch.cuda.device_count()
    if index is None:
        index = 0 if count else -1
    allowed = f"-1 (CPU) to {count - 1}" if count else "-1 (CPU); this machine has no CUDA device"
    check(-1 <= index < count, "device_index", index, allowed)
    return torch.device("cpu") if index < 0 else torch.device("cuda", index)


def compute_type(clip: Clip, device: torch.device) -> torch.dtype:
    """fp16 for RGBH on a GPU. CPUs have no fast fp16: there the network computes in fp32 for both formats."""
    return torch.float16 if clip.format == "RGBH" and device.type != "cpu" else torch.float32


def find_weights(filter_name: str, settings: SharedSettings, default: str) -> Path:
    """The verified weights file that ``model`` or ``model_path`` stands for.

    Raises:
        UserError: there is no such file or name, or the weights are not installed.
    """
    if settings.model_path:
        check(Path(settings.model_path).is_file(), "model_path", settings.model_path, "an existing file")
        return Path(settings.model_path)
    names = [row.name for row in weights.MANIFEST if row.model == filter_name and not row.part]
    name = settings.model or default
    check(name in names, "model", name, " or ".join(names) or "none; give model_path")
    return weights.verify(name)
