"""Degraded clips on disk, built once from photographs and videos."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from vsvsr.errors import UserError
from vsvsr.files import replace_file
from vsvsr.training.data.degradation import Degradation, capture, degrade, shrink
from vsvsr.training.data.motion import synthetic_clip
from vsvsr.training.data.pictures import find_sources, load_photograph
from vsvsr.training.data.second_order import degrade_twice
from vsvsr.training.settings import Option, check_shares
from vsvsr.video.source import Pictures, open_video

_FARTHEST = 200
"""Clips begin in the first frames of a video: those behind have to be decoded too."""


_SOFTNESS = (1.0, 4.0)
"""Standard deviation of the blur of a truth out of focus, in high-resolution pixels, for x4."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """What `build_dataset` makes. Clip ``i`` is a function of the source files, these settings and ``(seed, i)``."""

    clips: Annotated[int, Option("how many", at_least=0)] = 300
    frames: Annotated[int, Option("length of each", at_least=1)] = 30
    size: Annotated[
        tuple[int, int], Option("height and width of the high-resolution frames, multiples of 4 * scale", at_least=32)
    ] = (320, 448)
    scale: Annotated[Literal[2, 4], Option("high-resolution pixels per low-resolution pixel")] = 4
    clean: Annotated[bool, Option("only downsample (for mia), instead of blur, noise and compression")] = False
    video_share: Annotated[float, Option("share of the clips cut from real videos, when there are any, 0 to 1")] = 0.5
    noisy_share: Annotated[float, Option("share of noisy captures, encoded well (tapes, grain, darkness)")] = 0.0
    light_share: Annotated[float, Option("share of good footage, hardly degraded")] = 0.0
    heavy_share: Annotated[float, Option("share of heavily blurred and compressed footage")] = 0.0
    soft_share: Annotated[float, Option("share of clips whose truth is out of focus, as much of real footage is")] = 0.0
    interlaced_share: Annotated[float, Option("share of clips of interlaced origin")] = 0.0
    recompressed_share: Annotated[float, Option("share of clips compressed twice")] = 0.0
    second_order_share: Annotated[float, Option("share of clips degraded twice over, as RealBasicVSR's")] = 0.0
    seed: Annotated[int, Option("of everything random", at_least=0)] = 0


@dataclass(frozen=True, kw_only=True)
class Settings(DatasetConfig):
    """Settings of the command."""

    sources: Annotated[Path, Option("folder of photographs, videos, image sequences", positional=True)]
    target: Annotated[Path, Option("folder of clips; those that are there already are kept", positional=True)]


def run(settings: Settings) -> None:
    """Build."""
    build_dataset(settings.sources, settings.target, settings)


def _video_clip(path: Path, rng: np.random.Generator, config: DatasetConfig) -> np.ndarray | None:
    """A random piece of a video, or None where it is too small or too short."""
    video = Pictures(open_video(path).clip)
    height, width = video.size
    if height < config.size[0] or width < config.size[1]:
        return None
    if len(video) < config.frames:
        return None
    first = int(rng.integers(0, min(_FARTHEST, len(video) - config.frames + 1)))
    frames = np.stack(list(video[first : first + config.frames]))
    top, left = (int(rng.integers(0, side - want + 1)) for side, want in zip((height, width), config.size, strict=True))
    return frames[:, top : top + config.size[0], left : left + config.size[1]]


def _softened(frames: np.ndarray, sigma: float) -> np.ndarray:
    """Frames ``(t, h, w, 3)`` out of focus: blurred by a Gaussian."""
    return capture(frames, Degradation(sigma=(sigma, sigma), noise=0.0, resize="area", crf=0), scale=1, seed=0)


def build_dataset(sources: Path, target: Path, config: DatasetConfig) -> None:
    """Write clips ``00000``, ``00001``, ... below ``target``; those that are there already are kept.

    Each is a folder with ``gt.npy`` ``(t, h, w, 3)`` and ``lr.npy`` (uint8), ``clip.json`` (scale, softness,
    family and parameters of the degradation), and for synthetic clips ``motion.npy``, the true flow.
    """
    _check(config)
    pictures, videos = find_sources(sources)
    photographs = [load_photograph(path, config.size) for path in pictures]
    target.mkdir(parents=True, exist_ok=True)
    for index in range(config.clips):
        folder = target / f"{index:05d}"
        if (folder / "clip.json").exists():
            continue
        rng = np.random.default_rng((config.seed, index))
        folder.mkdir(exist_ok=True)
        (folder / "motion.npy").unlink(missing_ok=True)  # of a process that was killed, maybe for another clip
        frames: np.ndarray | None = None
        if videos and (not photographs or rng.random() < config.video_share):
            frames = _video_clip(videos[int(rng.integers(len(videos)))], rng, config)
        if frames is None:
            if not photographs:
                raise UserError(f"a video below {sources} is shorter or smaller than a training clip; remove it")
            clip = synthetic_clip(photographs, rng, frames=config.frames, size=config.size, scale=config.scale)
            frames = clip.frames
            np.save(folder / "motion.npy", clip.flow)
        settings: dict[str, Any] = {"scale": config.scale}
        own = np.random.default_rng((config.seed, index, 4))
        if own.random() < config.soft_share:
            settings["softness"] = own.uniform(*_SOFTNESS) * config.scale / 4
            frames = _softened(frames, settings["softness"])
        np.save(folder / "gt.npy", frames)
        if config.clean:
            settings |= {"family": "clean", "resize": "bicubic with anti-aliasing"}
            small = shrink(frames, scale=config.scale)
        elif np.random.default_rng((config.seed, index, 2)).random() < config.second_order_share:
            settings |= {"family": "second order"}
            small = degrade_twice(frames, np.random.default_rng((config.seed, index, 3)), scale=config.scale)
        else:
            family, degradation, seed = _draw_degradation(rng, config, index)
            drawn = {name: value for name, value in asdict(degradation).items() if value is not None}
            settings |= {"family": family, **drawn}
            small = degrade(frames, degradation, scale=config.scale, seed=seed)
        np.save(folder / "lr.npy", small)
        partial = folder / "clip.json.partial"
        partial.write_text(json.dumps(settings))
        replace_file(partial, folder / "clip.json")


def _check(config: DatasetConfig) -> None:
    multiple = 4 * config.scale
    if any(side % multiple for side in config.size):
        height, width = config.size
        raise UserError(f"--size {height} {width} is not possible; allowed: multiples of {multiple}")
    check_shares(
        config,
        "video_share",
        "noisy_share",
        "light_share",
        "heavy_share",
        "soft_share",
        "interlaced_share",
        "recompressed_share",
        "second_order_share",
    )
    if config.noisy_share + config.light_share + config.heavy_share > 1 + 1e-9:
        raise UserError("--noisy-share, --light-share and --heavy-share are more than 1 together")


def _draw_degradation(rng: np.random.Generator, config: DatasetConfig, index: int) -> tuple[str, Degradation, int]:
    """Family, parameters and noise seed of clip ``index``; a share changes only the clips that it concerns."""
    family, degradation = "eq. 9", Degradation.draw(rng, scale=config.scale)
    seed = int(rng.integers(2**31))
    own = np.random.default_rng((config.seed, index, 1))
    kind = own.random()
    if kind < config.noisy_share:
        family, degradation = "noisy capture", Degradation.draw_noisy(own, scale=config.scale)
    elif kind < config.noisy_share + config.light_share:
        family, degradation = "light", Degradation.draw_light(own, scale=config.scale)
    elif kind < config.noisy_share + config.light_share + config.heavy_share:
        family, degradation = "heavy", Degradation.draw_heavy(own, scale=config.scale)
    prior = degradation.with_prior_processing(
        rng, interlaced=config.interlaced_share, recompressed=config.recompressed_share
    )
    return family, prior, seed
