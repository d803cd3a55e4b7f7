"""Write a network's pictures beside each clip, for the recipe distill.

With Real-ESRGAN's large network a clip of 15 frames of 112x80 takes about 13 s on one core with bfloat16, and a minute
on one without. Clips that have their pictures are left alone.
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
from vsvsr.errors import UserError
from vsvsr.files import replace_file
from vsvsr.models.fastreal import FastRealVSR
from vsvsr.models.fastreal import load as load_fastreal
from vsvsr.models.realesrgan import PerFrameNetwork, load_ncnn, load_published
from vsvsr.training.data.clips import Clips
from vsvsr.training.data.degradation import Degradation, capture
from vsvsr.training.harness import Processes
from vsvsr.training.settings import Option

Teacher = Literal["realesrgan-x4plus", "realesr-animevideov3", "fastreal-x4"]
Sees = Literal["degraded", "clean", "by family"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the command."""

    clips: Annotated[Path, Option("folder of clips that build made, for scale 4", positional=True)]
    teacher: Annotated[Teacher, Option("the network")] = get_args(Teacher)[0]
    file: Annotated[
        Path | None,
        Option(
            "its published .pth, or what `vsvsr weights path` prints of it; by default the installed or shipped file"
        ),
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
    network = _load(settings).to(device).to(memory_format=torch.channels_last)
    missing = [
        path
        for clip in Clips(settings.clips, scale=4).folders
        if not (path := clip / f"{target_name(settings.teacher)}.npy").exists()
    ]
    for path in track(missing, settings.teacher, console=Console(stderr=True)):
        pictures = enlarged(network, _seen(path.parent, settings.sees), device)
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            np.save(file, pictures)
        replace_file(partial, path)


def _load(settings: Settings) -> PerFrameNetwork | FastRealVSR:
    """The teacher."""
    name = settings.teacher
    if name == "fastreal-x4":
        return load_fastreal(settings.file or weights.verify(name)).network
    if settings.file is not None:
        return load_published(name, settings.file)
    return load_ncnn(name, weights.install(name))


@torch.inference_mode()
def enlarged(network: PerFrameNetwork | FastRealVSR, frames: np.ndarray, device: torch.device) -> np.ndarray:
    """Frames ``(t, h, w, 3)`` uint8 to pictures ``(t, 4 h, 4 w, 3)`` uint8; in bfloat16 where that is fast."""
    clip: Tensor = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2) / 255
    clip = clip.contiguous(memory_format=torch.channels_last)
    # Processors without AVX-512 compute bfloat16 by a detour, a hundred times slower.
    fast = device.type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast):
        if isinstance(network, FastRealVSR):
            pictures = network(clip[None])[0]
        else:
            pictures = torch.cat([network(frame[None]) for frame in clip])
    pixels: np.ndarray = pictures.float().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def _seen(clip: Path, sees: Sees) -> np.ndarray:
    """The frames that the teacher enlarges."""
    facts = json.loads((clip / "clip.json").read_text())
    if sees == "degraded" or (sees == "by family" and facts["family"] != "noisy capture"):
        seen: np.ndarray = np.load(clip / "lr.npy")
        return seen
    if facts["family"] in ("clean", "second order"):
        raise UserError(f"{clip} is of the family {facts['family']!r}; give --sees degraded")
    known = {field.name for field in fields(Degradation)}
    degradation = Degradation(**{name: value for name, value in facts.items() if name in known})
    return capture(np.load(clip / "gt.npy"), replace(degradation, noise=0.0), scale=facts["scale"], seed=0)
