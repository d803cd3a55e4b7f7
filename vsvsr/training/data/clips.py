"""Degraded clips that `build` wrote, whole or as random crops."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from vsvsr.errors import UserError
from vsvsr.files import replace_file
from vsvsr.models.fastreal import FastRealVSR

MOTION = "motion"
"""The true flow of synthetic clips, as a name for `Clips`."""

Box = tuple[slice, slice, slice]
"""Frames, rows and columns of a clip, in low-resolution pixels."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences of equal size.

    Attributes:
        frames: RGB in [0, 1], ``(n, t, 3, h, w)``.
        truth: ``(n, t, 3, s h, s w)``.
        flows: of each frame but the first into the one before, ``(n, t - 1, 2, h, w)`` in low-resolution pixels; zero
            for clips that were opened without flow.
        targets: further pictures of the truth's shape, by name.
        families: of each sequence's degradation.
    """

    frames: Tensor
    truth: Tensor
    flows: Tensor
    targets: dict[str, Tensor]
    families: tuple[str, ...]

    def to(self, device: torch.device) -> "Batch":
        """The same on ``device``."""
        return self._map(lambda tensor: tensor.to(device))

    def part(self, time: slice) -> "Batch":
        """A stretch of frames, of a batch that has a flow for every frame."""
        return self._map(lambda tensor: tensor[:, time])

    def mirrored(self) -> "Batch":
        """The sequence, then the same backwards, as recurrent networks see short clips; flows are zero."""
        twice = self._map(lambda tensor: torch.cat((tensor, tensor.flip(1)), dim=1))
        return replace(
            twice, flows=self.flows.new_zeros(len(self.flows), twice.frames.shape[1] - 1, *self.flows.shape[2:])
        )

    def turn(self, *, mirrored: bool, upside_down: bool, transposed: bool) -> "Batch":
        """Flips and transposition, together all eight orientations; the flow turns with its pictures."""
        turned = self
        if mirrored:
            turned = turned._flipped(-1, (-1.0, 1.0))
        if upside_down:
            turned = turned._flipped(-2, (1.0, -1.0))
        if transposed:
            turned = turned._map(lambda tensor: tensor.mT)
            turned = replace(turned, flows=turned.flows.flip(-3))
        return turned

    def _flipped(self, side: int, signs: tuple[float, float]) -> "Batch":
        """Along a dimension, flows multiplied by the signs of their components."""
        flipped = self._map(lambda tensor: tensor.flip(side))
        return replace(flipped, flows=flipped.flows * flipped.flows.new_tensor(signs).view(2, 1, 1))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        targets = {name: change(target) for name, target in self.targets.items()}
        return replace(
            self, frames=change(self.frames), truth=change(self.truth), flows=change(self.flows), targets=targets
        )


class Clips:
    """The clips below a folder.

    Args:
        folder: what `build` wrote.
        scale: of the network that is trained. Clips of twice this scale serve too: their large pictures are averaged
            over 2x2 pixels. Others are refused.
        flow: name of a file of flows, `MOTION` or what `write_flows` returned; clips without it are left out. None for
            recipes that need no flow.
        targets: names of further pictures beside ``gt.npy``, each ``(t, s h, s w, 3)``: ``NAME.npy`` in uint8 or in
            floats from 0 to 1, or ``NAME.safetensors`` with a tensor ``pictures``.

    Raises:
        UserError: there are no clips, or one lacks a target or is of a scale that does not serve.
    """

    def __init__(self, folder: Path, *, scale: int, flow: str | None = None, targets: Sequence[str] = ()) -> None:
        self.scale, self.flow, self.targets = scale, flow, tuple(targets)
        self.folders = find_clips(folder)
        if flow is not None:
            self.folders = [clip for clip in self.folders if (clip / f"{flow}.npy").exists()]
        if not self.folders:
            what = "training clips" if flow is None else f"clips with {flow}.npy"
            raise UserError(f"no {what} in {folder}; make some with: python -m vsvsr.training build")
        for clip in self.folders:
            made_for = _facts(clip).get("scale")
            if made_for not in (scale, 2 * scale):
                raise UserError(
                    f"{clip} was made for scale {made_for}, the network has scale {scale}; build other clips"
                )
            for name in targets:
                if not any((clip / f"{name}{suffix}").exists() for suffix in (".npy", ".safetensors")):
                    raise UserError(
                        f"{clip} has no {name}.npy or {name}.safetensors; make it for all clips (those of teachers: "
                        "python -m vsvsr.training teach)"
                    )

    def __len__(self) -> int:
        return len(self.folders)

    @property
    def families(self) -> set[str]:
        """Of the degradations of all clips."""
        return {_facts(clip).get("family", "") for clip in self.folders}

    def shape(self, index: int) -> tuple[int, int, int]:
        """Frames, height and width of a clip at low resolution."""
        t, h, w, _ = np.load(self.folders[index] / "lr.npy", mmap_mode="r").shape
        return t, h, w

    def whole(self, index: int) -> Batch:
        """A clip uncropped, as one sequence."""
        t, h, w = self.shape(index)
        return self.read(index, (slice(0, t), slice(0, h), slice(0, w)))

    def read(self, index: int, box: Box) -> Batch:
        """A piece of a clip, as one sequence."""
        clip, (time, *sides) = self.folders[index], box
        facts = _facts(clip)
        rows, columns = (slice(facts["scale"] * side.start, facts["scale"] * side.stop) for side in sides)
        large = (time, rows, columns)
        finer = facts["scale"] // self.scale
        frames = _pixels(clip, "lr", box)
        if self.flow is None:
            flows = frames.new_zeros(1, frames.shape[1] - 1, 2, *frames.shape[-2:])
        else:
            flow = np.load(clip / f"{self.flow}.npy", mmap_mode="r")
            between = (slice(time.start, time.stop - 1), slice(None), *sides)
            flows = torch.from_numpy(np.array(flow[between])).float()[None]
        truth, *targets = (_averaged(_pixels(clip, name, large), finer) for name in ("gt", *self.targets))
        return Batch(
            frames=frames,
            truth=truth,
            flows=flows,
            targets=dict(zip(self.targets, targets, strict=True)),
            families=(facts.get("family", ""),),
        )


class Crops:
    """Random crops of clips, flipped and turned at random.

    Args:
        clips: to crop.
        frames: length of a crop.
        crop: height and width of its low-resolution frames.

    Raises:
        UserError: a clip is shorter or smaller than a crop.
    """

    def __init__(self, clips: Clips, *, frames: int, crop: int) -> None:
        self.clips, self.frames, self.crop = clips, frames, crop
        self._shapes = [clips.shape(index) for index in range(len(clips))]
        for folder, (t, h, w) in zip(clips.folders, self._shapes, strict=True):
            if t < frames or min(h, w) < crop:
                raise UserError(
                    f"{folder} has {t} frames of {w}x{h}; a crop of {frames} frames of {crop}x{crop} does not fit: "
                    "give less, or build other clips"
                )

    def batch(self, rng: np.random.Generator, size: int, *, index: int = 0, count: int = 1) -> Batch:
        """Random crops, drawn one after the other.

        Args:
            rng: chooses.
            size: sequences to draw.
            index: of the process that asks.
            count: of processes; each gets every ``count``-th sequence from ``index`` on.
        """
        parts = [self._load(*drawn) for drawn in [self._draw(rng) for _ in range(size)][index::count]]
        frames, truth, flows = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("frames", "truth", "flows")
        )
        targets = {name: torch.cat([part.targets[name] for part in parts]) for name in self.clips.targets}
        families = tuple(family for part in parts for family in part.families)
        return Batch(frames=frames, truth=truth, flows=flows, targets=targets, families=families)

    def _draw(self, rng: np.random.Generator) -> tuple[int, Box, tuple[bool, bool, bool]]:
        """Number of a clip, a piece of it, and how it is turned."""
        index = int(rng.integers(len(self.clips)))
        wanted = (self.frames, self.crop, self.crop)
        starts = [int(rng.integers(0, have - want + 1)) for have, want in zip(self._shapes[index], wanted, strict=True)]
        first, top, left = (slice(start, start + want) for start, want in zip(starts, wanted, strict=True))
        mirrored, upside_down, transposed = (bool(rng.random() < 0.5) for _ in range(3))
        return index, (first, top, left), (mirrored, upside_down, transposed)

    def _load(self, index: int, box: Box, turns: tuple[bool, bool, bool]) -> Batch:
        mirrored, upside_down, transposed = turns
        piece = self.clips.read(index, box)
        return piece.turn(mirrored=mirrored, upside_down=upside_down, transposed=transposed)


def find_clips(folder: Path) -> list[Path]:
    """The finished clips below a folder, sorted."""
    return sorted(path.parent for path in folder.glob("*/clip.json"))


def write_flows(folder: Path, network: FastRealVSR) -> str:
    """Write the flows that a network computes into the clips that lack them; returns their name for `Clips`."""
    name = f"flow-{_flow_key(network)}"
    device = next(network.parameters()).device
    for clip in find_clips(folder):
        path = clip / f"{name}.npy"
        if path.exists():
            continue
        frames = torch.from_numpy(np.load(clip / "lr.npy")).to(device).permute(0, 3, 1, 2) / 255
        with torch.inference_mode():
            flow = network.flow(frames[1:], frames[:-1])
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            np.save(file, flow.half().cpu().numpy())
        replace_file(partial, path)
    return name


def _flow_key(network: FastRealVSR) -> str:
    """Changes whenever the flows that a network computes change."""
    digest = hashlib.sha256(network.config.flow.encode())
    for name, value in sorted(network.flow_estimator.state_dict().items()):
        digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def _facts(clip: Path) -> dict[str, Any]:
    """What `build` noted of a clip."""
    facts: dict[str, Any] = json.loads((clip / "clip.json").read_text())
    return facts


def _pixels(clip: Path, name: str, box: Box) -> Tensor:
    """Pictures of a clip as floats ``(1, t, 3, h, w)``."""
    path = clip / f"{name}.npy"
    if path.exists():
        pixels = torch.from_numpy(np.array(np.load(path, mmap_mode="r")[box]))
    else:
        with safe_open(path.with_suffix(".safetensors"), framework="pt") as file:
            pixels = file.get_slice("pictures")[box]
    pictures = pixels.permute(0, 3, 1, 2)[None].float()
    return pictures / 255 if pixels.dtype == torch.uint8 else pictures


def _averaged(pictures: Tensor, side: int) -> Tensor:
    """Pictures ``(1, t, 3, h, w)``, averaged over squares of ``side`` pixels."""
    return pictures if side == 1 else F.avg_pool2d(pictures[0], side)[None]
