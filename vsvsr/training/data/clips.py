"""Random crops of degraded clips."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vsvsr.errors import UserError
from vsvsr.models.fastreal import FastRealVSR


def _flow_key(network: FastRealVSR) -> str:
    """Changes whenever the flows that a network computes change."""
    digest = hashlib.sha256(network.config.flow.encode())
    for name, value in sorted(network.flow_estimator.state_dict().items()):
        digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class _Crop:
    """A piece of a clip: first frame, top left corner in low-resolution pixels, flips and transposition."""

    folder: Path
    first: int
    top: int
    left: int
    mirrored: bool
    upside_down: bool
    transposed: bool

    def turn(self, x: Tensor, y: Tensor, flow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Flips and transposition of frames, truth and flow."""
        if self.mirrored:
            x, y, flow = x.flip(-1), y.flip(-1), flow.flip(-1) * torch.tensor((-1.0, 1.0)).view(1, 2, 1, 1)
        if self.upside_down:
            x, y, flow = x.flip(-2), y.flip(-2), flow.flip(-2) * torch.tensor((1.0, -1.0)).view(1, 2, 1, 1)
        if self.transposed:
            x, y, flow = x.mT, y.mT, flow.mT.flip(1)
        return x, y, flow


class Dataset:
    """Random crops of the clips below a folder, with flows computed once by the network that is trained.

    Args:
        folder: what `build_dataset` wrote.
        network: its flow estimator is used, and its scale must be the data's.
        crop: height and width of the low-resolution crops.
    """

    def __init__(self, folder: Path, network: FastRealVSR, *, crop: int) -> None:
        self.folders = sorted(path.parent for path in folder.glob("*/clip.json"))
        if not self.folders:
            raise UserError(f"no training clips in {folder}; make some with: python -m vsvsr.training build")
        self.scale, self.crop = network.scale, crop
        self._flow_name = f"flow-{_flow_key(network)}.npy"
        for path in self.folders:
            if not (path / self._flow_name).exists():
                self._write_flow(path, network)

    def __len__(self) -> int:
        return len(self.folders)

    def batch(
        self, rng: np.random.Generator, size: int, frames: int, *, part: tuple[int, int] = (0, 1)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Random crops: frames ``(n, t, 3, h, w)``, truth ``(n, t, 3, s h, s w)``, flows ``(n, t - 1, 2, h, w)``.

        Args:
            rng: chooses.
            size: sequences to choose.
            frames: length of each.
            part: ``(i, count)`` returns every ``count``-th of them from the ``i``-th on, the share of one process.
        """
        index, count = part
        crops = [self._draw(rng, frames) for _ in range(size)]
        items = [self._load(crop, frames) for crop in crops[index::count]]
        frames_, truth, flow = (torch.stack(parts) for parts in zip(*items, strict=True))
        return frames_, truth, flow

    def whole(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Clip ``index`` uncropped, as `batch` gives it, one sequence."""
        folder = self.folders[index]
        lr, gt = (torch.from_numpy(np.load(folder / name)) for name in ("lr.npy", "gt.npy"))
        flow = torch.from_numpy(np.load(folder / self._flow_name)).float()
        return lr.permute(0, 3, 1, 2)[None] / 255, gt.permute(0, 3, 1, 2)[None] / 255, flow[None]

    def _draw(self, rng: np.random.Generator, frames: int) -> _Crop:
        folder = self.folders[int(rng.integers(len(self)))]
        length, height, width = np.load(folder / "lr.npy", mmap_mode="r").shape[:3]
        return _Crop(
            folder=folder,
            first=int(rng.integers(0, length - frames + 1)),
            top=int(rng.integers(0, height - self.crop + 1)),
            left=int(rng.integers(0, width - self.crop + 1)),
            mirrored=bool(rng.random() < 0.5),
            upside_down=bool(rng.random() < 0.5),
            transposed=bool(rng.random() < 0.5),
        )

    def _load(self, crop: _Crop, frames: int) -> tuple[Tensor, Tensor, Tensor]:
        lr, gt, flow = (np.load(crop.folder / name, mmap_mode="r") for name in ("lr.npy", "gt.npy", self._flow_name))
        time, s, c = slice(crop.first, crop.first + frames), self.scale, self.crop
        rows, columns = slice(crop.top, crop.top + c), slice(crop.left, crop.left + c)
        wide = (slice(s * start.start, s * start.stop) for start in (rows, columns))
        x = torch.from_numpy(np.array(lr[time, rows, columns])).permute(0, 3, 1, 2).float() / 255
        y = torch.from_numpy(np.array(gt[(time, *wide)])).permute(0, 3, 1, 2).float() / 255
        f = torch.from_numpy(np.array(flow[time][: frames - 1, :, rows, columns])).float()
        return crop.turn(x, y, f)

    def _write_flow(self, folder: Path, network: FastRealVSR) -> None:
        device = next(network.parameters()).device
        frames = torch.from_numpy(np.load(folder / "lr.npy")).to(device).permute(0, 3, 1, 2) / 255
        with torch.inference_mode():
            flow = network.flow(frames[1:], frames[:-1])
        np.save(folder / self._flow_name, flow.half().cpu().numpy())


class Clips:
    """Random crops of what `build_dataset` wrote, without flow.

    Args:
        folder: of clips.
        frames: length of a crop.
        crop: height and width of its low-resolution frames.
    """

    def __init__(self, folder: Path, *, frames: int, crop: int) -> None:
        self.folders = sorted(path.parent for path in folder.glob("*/clip.json"))
        if not self.folders:
            raise UserError(f"no training clips in {folder}; make some with: python -m vsvsr.training build")
        self.frames, self.crop = frames, crop

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Frames ``(t, 3, crop, crop)`` and truth ``(t, 3, 4 crop, 4 crop)`` in [0, 1]."""
        folder = self.folders[int(rng.integers(len(self.folders)))]
        lr, gt = (np.load(folder / name, mmap_mode="r") for name in ("lr.npy", "gt.npy"))
        spare = (len(lr) - self.frames, lr.shape[1] - self.crop, lr.shape[2] - self.crop)
        first, top, left = (int(rng.integers(room + 1)) for room in spare)

        def piece(clip: np.ndarray, scale: int) -> Tensor:
            side = scale * self.crop
            rows, columns = (slice(scale * start, scale * start + side) for start in (top, left))
            pixels = np.array(clip[first : first + self.frames, rows, columns])
            return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255

        return piece(lr, 1), piece(gt, 4)
