"""Degraded clips on disk: built once from photographs and videos, read at random by the trainer."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vsvsr.errors import UserError
from vsvsr.models.fastreal import FastRealVSR
from vsvsr.training.degradation import Degradation, degrade, shrink
from vsvsr.training.motion import synthetic_clip
from vsvsr.video.ffmpeg import read_video, video_size

_PICTURES = {".jpg", ".jpeg", ".png"}
_VIDEOS = {".mp4", ".mkv", ".webm", ".mov", ".avi"}


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """What `build_dataset` makes.

    Attributes:
        clips: how many.
        frames: length of each.
        size: height and width of the high-resolution frames, multiples of ``4 * scale``.
        scale: 2 or 4.
        clean: only downsample, see `vsvsr.training.degradation.shrink`, instead of eq. 9.
        video_share: share of the clips cut from real videos, when there are any.
        interlaced_share: share of the clips that have been interlaced before.
        recompressed_share: share of the clips that are compressed twice.
        seed: clip ``i`` is a function of the source files, these settings and ``(seed, i)``.
    """

    clips: int
    frames: int = 30
    size: tuple[int, int] = (320, 448)
    scale: int = 4
    clean: bool = False
    video_share: float = 0.5
    interlaced_share: float = 0.0
    recompressed_share: float = 0.0
    seed: int = 0


def find_sources(folder: Path) -> tuple[list[Path], list[Path]]:
    """Pictures and videos below ``folder``, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    pictures = [path for path in files if path.suffix.lower() in _PICTURES]
    videos = [path for path in files if path.suffix.lower() in _VIDEOS]
    if not pictures and not videos:
        raise UserError(
            f"no pictures or videos below {folder}; give a folder with jpg, png, mp4, mkv, webm, mov or avi"
        )
    return pictures, videos


def load_photograph(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A photograph ``(h, w, 3)``, halved while it stays large: that removes JPEG blocks and sensor noise.

    A picture smaller than ``size`` is enlarged to it.
    """
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    while min(image.size) >= 1400:
        image = image.reduce(2)
    enlarge = max(size[0] / image.height, size[1] / image.width)
    if enlarge > 1:
        wanted = (round(image.width * enlarge) + 1, round(image.height * enlarge) + 1)
        image = image.resize(wanted, Image.Resampling.LANCZOS)
    return np.asarray(image)


def _video_clip(path: Path, rng: np.random.Generator, config: DatasetConfig) -> np.ndarray | None:
    """A random piece of a video, or None where it is too small or too short."""
    height, width = video_size(path)
    if height < config.size[0] or width < config.size[1]:
        return None
    frames = read_video(path, first=int(rng.integers(0, 200)), frames=config.frames)
    if len(frames) < config.frames:
        return None
    top, left = (int(rng.integers(0, side - want + 1)) for side, want in zip((height, width), config.size, strict=True))
    return frames[:, top : top + config.size[0], left : left + config.size[1]]


def build_dataset(sources: Path, target: Path, config: DatasetConfig) -> None:
    """Write clips ``00000``, ``00001``, ... below ``target``; those that are there already are kept.

    Each is a folder with ``gt.npy`` ``(t, h, w, 3)`` and ``lr.npy`` (uint8), ``clip.json`` (degradation), and for
    synthetic clips ``motion.npy``, the true flow.
    """
    pictures, videos = find_sources(sources)
    photographs = [load_photograph(path, config.size) for path in pictures]
    target.mkdir(parents=True, exist_ok=True)
    for index in range(config.clips):
        folder = target / f"{index:05d}"
        if (folder / "clip.json").exists():
            continue
        rng = np.random.default_rng((config.seed, index))
        folder.mkdir(exist_ok=True)
        frames: np.ndarray | None = None
        if videos and (not photographs or rng.random() < config.video_share):
            frames = _video_clip(videos[int(rng.integers(len(videos)))], rng, config)
        if frames is None:
            if not photographs:
                raise UserError(f"a video below {sources} is shorter or smaller than a training clip; remove it")
            clip = synthetic_clip(photographs, rng, frames=config.frames, size=config.size, scale=config.scale)
            frames = clip.frames
            np.save(folder / "motion.npy", clip.flow)
        np.save(folder / "gt.npy", frames)
        if config.clean:
            settings = {"resize": "bicubic with anti-aliasing"}
            np.save(folder / "lr.npy", shrink(frames, scale=config.scale))
        else:
            degradation = Degradation.draw(rng, scale=config.scale)
            seed = int(rng.integers(2**31))
            # Drawn last: a clip is the same but for its past, whatever these shares are.
            degradation = degradation.with_past(
                rng, interlaced=config.interlaced_share, recompressed=config.recompressed_share
            )
            settings = {name: value for name, value in asdict(degradation).items() if value is not None}
            np.save(folder / "lr.npy", degrade(frames, degradation, scale=config.scale, seed=seed))
        (folder / "clip.json").write_text(json.dumps(settings))


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
