"""Write a published network's pictures beside each clip, for the recipe distill.

A clip of 15 frames of 112x80 takes about 13 s on one core with bfloat16. Clips that have their pictures are left alone.
"""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vsvsr import weights
from vsvsr.files import replace_file
from vsvsr.models.realesrgan import PerFrameNetwork, load_ncnn, load_published
from vsvsr.training.data.clips import find_clips
from vsvsr.training.data.degradation import Degradation, capture
from vsvsr.training.harness import Processes
from vsvsr.training.settings import Option

Teacher = Literal["realesrgan-x4plus", "realesr-animevideov3"]
Sees = Literal["degraded", "clean", "by family"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the command."""

    clips: Annotated[Path, Option("folder of clips that build made, for scale 4", positional=True)]
    teacher: Annotated[Teacher, Option("the network")] = get_args(Teacher)[0]
    file: Annotated[
        Path | None,
        Option("its published .pth, or what `vsvsr weights path` prints of it; by default the installed file"),
    ] = None
    sees: Annotated[
        Sees,
        Option(
            "the degraded frames, those without noise and compression (clean), or by family: clean for noisy captures, "
            "where earlier frames know what the noise hides, else degraded"
        ),
    ] = "by family"


def target_name(teacher: str) -> str:
    """File name of the pictures without suffix: a target of `vsvsr.training.data.clips.Clips`."""
    return f"teacher-{teacher}"


def run(settings: Settings) -> None:
    """Teach."""
    device = Processes.launched().device
    if settings.file is not None:
        network = load_published(settings.teacher, settings.file)
    else:
        network = load_ncnn(settings.teacher, weights.install(settings.teacher))
    network.to(device).to(memory_format=torch.channels_last)
    missing = [
        path
        for clip in find_clips(settings.clips)
        if not (path := clip / f"{target_name(settings.teacher)}.npy").exists()
    ]
    for path in track(missing, settings.teacher, console=Console(stderr=True)):
        pictures = enlarged(network, _seen(path.parent, settings.sees), device)
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            np.save(file, pictures)
        replace_file(partial, path)


@torch.inference_mode()
def enlarged(network: PerFrameNetwork, frames: np.ndarray, device: torch.device) -> np.ndarray:
    """Frames ``(t, h, w, 3)`` uint8 to pictures ``(t, 4 h, 4 w, 3)`` uint8; computed in bfloat16."""
    pictures = []
    for frame in frames:
        x: Tensor = torch.from_numpy(frame).to(device).permute(2, 0, 1)[None] / 255
        with torch.autocast(device.type, dtype=torch.bfloat16):
            picture = network(x.contiguous(memory_format=torch.channels_last))[0]
        pictures.append(picture.float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy())
    return np.stack(pictures)


def _seen(clip: Path, sees: Sees) -> np.ndarray:
    """The frames that the teacher enlarges."""
    facts = json.loads((clip / "clip.json").read_text())
    if sees == "degraded" or (sees == "by family" and facts["family"] != "noisy capture"):
        seen: np.ndarray = np.load(clip / "lr.npy")
        return seen
    known = {field.name for field in fields(Degradation)}
    degradation = Degradation(**{name: value for name, value in facts.items() if name in known})
    return capture(np.load(clip / "gt.npy"), replace(degradation, noise=0.0), scale=facts["scale"], seed=0)
