"""Clips with known motion: photographs seen by a synthetic camera."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from vsvsr.training.data.degradation import blur, blur_kernel

Generator = np.random.Generator

Speed = Literal["still", "slow", "medium", "fast"]

_SPEEDS: dict[Speed, float] = {"still": 0.0, "slow": 0.5, "medium": 2.0, "fast": 8.0}
"""Kinds of shots and their largest pan in low-resolution pixels a frame."""


@dataclass(frozen=True, kw_only=True)
class SyntheticClip:
    """A clip and the motion in it.

    Attributes:
        frames: ``(t, h, w, 3)`` uint8.
        flow: for each frame after the first, the displacement of every low-resolution pixel into the frame before,
            ``(t - 1, 2, h / scale, w / scale)`` fp16 in low-resolution pixels; across a cut it means nothing.
    """

    frames: np.ndarray
    flow: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Shot:
    """What a shot shows.

    Attributes:
        camera: how fast the camera moves.
        front: how fast a second layer in front moves; None for no such layer.
    """

    camera: Speed
    front: Speed | None = None


_SOFTEST = 1.6
"""Largest standard deviation of a camera's own blur, in high-resolution pixels.

Reduced photographs have far more of the finest detail than video has. A network that knows only those takes every soft
picture for a blurred one and sharpens it too much: on real clips that cost more than it gained.
"""
_SHARP = 0.25
"""A blur too small to matter."""


def _smooth_noise(rng: Generator, frames: int, width: float) -> np.ndarray:
    """Unit-variance noise along time, smoothed over ``width`` frames."""
    reach = math.ceil(3 * width)
    taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * width**2))
    noise = rng.standard_normal(frames + 2 * reach)
    return np.convolve(noise, taps / np.sqrt((taps**2).sum()), mode="valid")


def _draw_speed(rng: Generator) -> Speed:
    return list(_SPEEDS)[int(rng.choice(len(_SPEEDS), p=(0.2, 0.35, 0.25, 0.2)))]


def _camera_path(rng: Generator, frames: int, scale: int, kind: Speed) -> np.ndarray:
    """Affine maps ``(t, 2, 3)`` from centred output pixels to centred source pixels."""
    speed = _SPEEDS[kind] * scale * rng.uniform(0.1, 1.0)
    angle = rng.uniform(0, 2 * np.pi)
    time = np.arange(frames) - frames / 2
    wander = np.cumsum(np.stack([_smooth_noise(rng, frames, 6.0) for _ in range(2)]), axis=1) * speed * 0.3
    x = np.cos(angle) * speed * time + wander[0]
    y = np.sin(angle) * speed * time + wander[1]
    log_zoom: np.ndarray = np.zeros(frames)
    turn: np.ndarray = np.zeros(frames)
    if kind != "still":
        if rng.random() < 0.4:
            log_zoom = rng.uniform(-1, 1) * 0.002 * min(max(_SPEEDS[kind], 1.0), 4.0) * time
        if rng.random() < 0.3:
            turn = rng.uniform(-1, 1) * 0.002 * min(max(_SPEEDS[kind], 1.0), 4.0) * time
        if rng.random() < 0.4:
            shake = rng.uniform(0.05, 0.6) * scale
            x = x + _smooth_noise(rng, frames, 1.5) * shake
            y = y + _smooth_noise(rng, frames, 1.5) * shake
            turn = turn + _smooth_noise(rng, frames, 2.0) * rng.uniform(0, 0.003)
    turn = turn + (rng.uniform(-np.pi, np.pi) if rng.random() < 0.1 else 0.0)
    zoom = np.exp(log_zoom)
    cosine, sine = zoom * np.cos(turn), zoom * np.sin(turn)
    return np.stack([np.stack([cosine, -sine, x], axis=1), np.stack([sine, cosine, y], axis=1)], axis=1)


def _decorate(image: Image.Image, rng: Generator) -> Image.Image:
    """Lettering, lines and flat shapes: what photographs of landscapes lack."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 25))):
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        x, y = (int(rng.integers(0, side)) for side in image.size)
        match rng.integers(0, 4):
            case 0 | 1:
                letters = "".join(chr(int(code)) for code in rng.integers(33, 127, int(rng.integers(3, 18))))
                draw.text((x, y), letters, fill=colour, font_size=int(rng.integers(10, 64)))
            case 2:
                end = (x + int(rng.integers(-150, 150)), y + int(rng.integers(-150, 150)))
                draw.line(((x, y), end), fill=colour, width=int(rng.integers(1, 7)))
            case _:
                corner = (x + int(rng.integers(5, 90)), y + int(rng.integers(5, 90)))
                draw.ellipse((x, y, *corner), fill=colour)
    return image


def _source(photographs: list[np.ndarray], rng: Generator, size: tuple[int, int]) -> Tensor:
    """A piece of a photograph at a random scale, larger than ``size`` where it can be: ``(1, 3, h, w)`` in [0, 1]."""
    photograph = photographs[int(rng.integers(len(photographs)))]
    height, width = photograph.shape[:2]
    largest = min(height / size[0], width / size[1])
    # Reduced pictures are sharp to the pixel, enlarged ones soft, as most real footage is.
    zoom = min(2.0 ** rng.uniform(-1.5, 1.0), max(largest, 1.0))
    wanted = [min(side, math.ceil(target * zoom * 1.5)) for side, target in zip((height, width), size, strict=True)]
    top, left = (int(rng.integers(0, side - want + 1)) for side, want in zip((height, width), wanted, strict=True))
    piece = Image.fromarray(photograph[top : top + wanted[0], left : left + wanted[1]])
    piece = piece.resize((round(piece.width / zoom), round(piece.height / zoom)), Image.Resampling.LANCZOS)
    if rng.random() < 0.15:
        piece = _decorate(piece, rng)
    return torch.from_numpy(np.array(piece)).permute(2, 0, 1)[None].float() / 255


def _centred_grid(size: tuple[int, int], step: int) -> Tensor:
    """Homogeneous centred coordinates ``(3, h / step * w / step)`` of the centres of ``step`` x ``step`` blocks."""
    rows = (torch.arange(size[0] // step) + 0.5) * step - size[0] / 2
    columns = (torch.arange(size[1] // step) + 0.5) * step - size[1] / 2
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x.reshape(-1), y.reshape(-1), torch.ones(x.numel())))


def _film(source: Tensor, path: np.ndarray, size: tuple[int, int]) -> Tensor:
    """What a camera on ``path`` sees of ``source``: ``(t, c, h, w)``."""
    height, width = source.shape[-2:]
    grid = _centred_grid(size, 1)
    frames = []
    for matrix in torch.from_numpy(path).float():
        where = (matrix @ grid) / torch.tensor([[width / 2], [height / 2]])
        where = where.view(1, 2, *size).permute(0, 2, 3, 1)
        frames.append(F.grid_sample(source, where, mode="bicubic", padding_mode="reflection", align_corners=False)[0])
    return torch.stack(frames)


def _flow(path: np.ndarray, size: tuple[int, int], scale: int) -> Tensor:
    """Low-resolution flow of each frame into the one before, ``(t - 1, 2, h / scale, w / scale)``."""
    grid = _centred_grid(size, scale)
    bottom = np.broadcast_to(np.array([[[0.0, 0.0, 1.0]]]), (len(path), 1, 3))
    square = np.concatenate((path, bottom), axis=1)
    relative = torch.from_numpy(np.linalg.inv(square[:-1]) @ square[1:])[:, :2].float()
    return ((relative @ grid - grid[:2]) / scale).view(-1, 2, size[0] // scale, size[1] // scale)


def _blob(rng: Generator, size: tuple[int, int]) -> Tensor:
    """A random smooth shape with a soft edge on a canvas twice ``size``: ``(1, 1, 2 h, 2 w)``, 1 inside."""
    coarse = torch.from_numpy(rng.standard_normal((1, 1, int(rng.integers(4, 9)), int(rng.integers(4, 9))))).float()
    field = F.interpolate(coarse, (2 * size[0], 2 * size[1]), mode="bicubic", align_corners=False)
    steepness = torch.gradient(field[0, 0])[0].abs().mean() * 1.5
    return ((field - rng.uniform(0.0, 0.6)) / steepness).clamp(-1, 1) * 0.5 + 0.5


def _shot(
    photographs: list[np.ndarray], rng: Generator, frames: int, size: tuple[int, int], scale: int, shot: Shot | None
) -> tuple[Tensor, Tensor]:
    path = _camera_path(rng, frames, scale, _draw_speed(rng) if shot is None else shot.camera)
    picture = _film(_source(photographs, rng, size), path, size)
    flow = _flow(path, size, scale)
    front: Speed | None = None
    if shot is not None:
        front = shot.front
    elif rng.random() < 0.35:
        front = _draw_speed(rng)
    if front is not None:
        # A second layer in front, on a path of its own: parallax, occlusion, moving objects.
        front_path = _camera_path(rng, frames, scale, front)
        shape = _film(_blob(rng, size), front_path, size).clamp(0, 1)
        picture = picture + (_film(_source(photographs, rng, size), front_path, size) - picture) * shape
        covered = F.avg_pool2d(shape[1:], scale) > 0.5
        flow = torch.where(covered, _flow(front_path, size, scale), flow)
    return picture, flow


def synthetic_clip(
    photographs: list[np.ndarray],
    rng: Generator,
    *,
    frames: int,
    size: tuple[int, int],
    scale: int,
    shot: Shot | None = None,
) -> SyntheticClip:
    """A clip of pans, zooms, turns, hand shake, still shots, a second layer in front, and now and then a cut.

    Each has the softness of some camera.

    Args:
        photographs: ``(h, w, 3)`` uint8, each at least as large as ``size``.
        rng: the only source of randomness.
        frames: length of the clip.
        size: height and width, multiples of ``scale``.
        scale: of the super-resolution; speeds are meant in low-resolution pixels.
        shot: what the whole clip shows; None draws it, and sometimes a cut.
    """
    cut = int(rng.integers(5, frames - 5)) if shot is None and frames > 12 and rng.random() < 0.1 else 0
    softness = float(rng.uniform(0.0, _SOFTEST))
    shots = [_shot(photographs, rng, length, size, scale, shot) for length in (cut, frames - cut) if length]
    flow = torch.cat([part for _, shot in shots for part in (shot, torch.zeros(1, *shot.shape[1:]))][:-1])
    picture = torch.cat([picture for picture, _ in shots])
    if softness > _SHARP:
        picture = blur(picture, blur_kernel((softness, softness), 0.0).float())
    pixels = picture.clamp_(0, 1).permute(0, 2, 3, 1).mul_(255).round_().to(torch.uint8)
    return SyntheticClip(frames=pixels.contiguous().numpy(), flow=flow.half().numpy())
