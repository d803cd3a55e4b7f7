"""RealBasicVSR's degradation (Chan et al., CVPR 2022), with which UltraVSR was trained: everything twice.

Blur, resizing, noise, JPEG and a video codec; the same weaker; then, in either order, a codec and the final resizing
with a sinc filter. Parameters are drawn once for a clip and wander from frame to frame.
Ranges are the authors', for x4.
"""

import io
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vsvsr.training.data.degradation import blur
from vsvsr.video.ffmpeg import through_bitrate

Range = tuple[float, float]
Clip = list[Tensor]
"""Frames ``(3, h, w)`` of 0 to 255, not necessarily of one size."""

_KERNELS = ("iso", "aniso", "generalised iso", "generalised aniso", "plateau iso", "plateau aniso", "sinc")
_SHARES = (0.405, 0.225, 0.108, 0.027, 0.108, 0.027, 0.1)
_SIZES = (7, 9, 11, 13, 15, 17, 19, 21)
_LARGEST = _SIZES[-1]
_CROP = 256**2
"""Pixels of the authors' training crops, for which the bit rates of the codec are meant."""
_FEWEST = 1000
"""Bits of a frame: x264 counts in thousands."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One of the two rounds.

    Attributes:
        blurred: probability of a blur.
        sigma: standard deviations of blurs in pixels.
        modes: probabilities of enlarging, shrinking and keeping the size.
        factor: of resizing.
        factor_step: how far it may wander from one frame to the next.
        noise: standard deviation of Gaussian noise in 8-bit steps.
        poisson: factor of Poisson noise.
    """

    blurred: float
    sigma: Range
    modes: tuple[float, float, float]
    factor: Range
    factor_step: float
    noise: Range
    poisson: Range


FIRST = Pass(
    blurred=1.0,
    sigma=(0.2, 3.0),
    modes=(0.2, 0.7, 0.1),
    factor=(0.15, 1.5),
    factor_step=0.015,
    noise=(1.0, 30.0),
    poisson=(0.05, 3.0),
)
SECOND = Pass(
    blurred=0.8,
    sigma=(0.2, 1.5),
    modes=(0.3, 0.4, 0.3),
    factor=(0.3, 1.2),
    factor_step=0.03,
    noise=(1.0, 25.0),
    poisson=(0.05, 2.5),
)


def degrade_twice(frames: np.ndarray, rng: np.random.Generator, *, scale: int) -> np.ndarray:
    """The low-resolution clip.

    Args:
        frames: ``(t, h, w, 3)`` uint8, sides multiples of ``2 * scale``.
        rng: the only source of randomness.
        scale: high-resolution pixels per low-resolution pixel.

    Returns:
        ``(t, h / scale, w / scale, 3)`` uint8.
    """
    height, width = (side // scale for side in frames.shape[1:3])
    clip = [sharpen(frame) for frame in torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float()]
    for stage in (FIRST, SECOND):
        if rng.random() < stage.blurred:
            clip = _blurred(clip, rng, stage)
        clip = _resized(clip, rng, stage)
        clip = _noisy(clip, rng, stage)
        clip = _jpeg(clip, rng)
        if stage is FIRST:
            clip = _coded(clip, rng)
    if codec_first := rng.random() < 0.5:
        clip = _coded(clip, rng)
    mode = _mode(rng)
    clip = [resize(frame, (height, width), mode) for frame in clip]
    if rng.random() < 0.8:
        size = int(rng.choice(_SIZES))
        clip = [
            blur(x, sinc_kernel(omega, size))
            for x, omega in zip(clip, _walk(rng, (math.pi / 3, math.pi), 0.0628, len(clip)), strict=True)
        ]
    if not codec_first:
        clip = _coded(clip, rng)
    return _to_8_bit(clip)


def sharpen(frame: Tensor) -> Tensor:
    """The unsharp mask that comes before everything: what differs from a wide blur by more than 10 counts half more."""
    rest = frame - _wide_blur(frame)
    mask = _wide_blur((rest.abs() > 10.0).float())
    return frame + mask * ((frame + 0.5 * rest).clamp(0, 255) - frame)


def _wide_blur(frame: Tensor) -> Tensor:
    """A Gaussian of 51 taps and sigma 8, borders replicated."""
    line = torch.exp(-0.5 * (torch.arange(-25, 26) / 8.0) ** 2)
    line = line / line.sum()
    padded = F.pad(frame[:, None], (25, 25, 25, 25), mode="replicate")
    return F.conv2d(F.conv2d(padded, line.view(1, 1, 1, 51)), line.view(1, 1, 51, 1))[:, 0]


def gaussian_kernel(
    sigma: Range, angle: float, size: int, beta: float, shape: Literal["gaussian", "plateau"]
) -> Tensor:
    """``(21, 21)``, zero beyond ``size``, that sums to 1.

    With ``q = x^T S^-1 x`` and ``S`` of standard deviations ``sigma`` along axes turned by ``angle``:
    ``exp(-q^beta / 2)``, or ``1 / (q^beta + 1)`` for a plateau.
    """
    y, x = _coordinates()
    cosine, sine = math.cos(angle), math.sin(angle)
    q = ((cosine * x + sine * y) / sigma[0]) ** 2 + ((-sine * x + cosine * y) / sigma[1]) ** 2
    kernel = torch.exp(-0.5 * q**beta) if shape == "gaussian" else 1.0 / (q**beta + 1.0)
    return _normalised(kernel, size)


def sinc_kernel(omega: float, size: int) -> Tensor:
    """The circular low-pass filter of cut-off ``omega`` in radians per pixel, ``(21, 21)``, zero beyond ``size``.

    ``omega J1(omega r) / (2 pi r)``, and ``omega^2 / (4 pi)`` in the middle, made to sum to 1.
    """
    y, x = _coordinates()
    radius = (x**2 + y**2).sqrt()
    kernel = omega * torch.special.bessel_j1(omega * radius) / (2 * math.pi * radius.clamp_min(1e-12))
    kernel[radius == 0] = omega**2 / (4 * math.pi)
    return _normalised(kernel, size)


def _coordinates() -> tuple[Tensor, Tensor]:
    line = torch.arange(_LARGEST, dtype=torch.float64) - _LARGEST // 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    return y, x


def _normalised(kernel: Tensor, size: int) -> Tensor:
    y, x = _coordinates()
    kernel = kernel.where(torch.maximum(x.abs(), y.abs()) <= size // 2, 0.0)
    return (kernel / kernel.sum()).float()


def resize(frame: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """As OpenCV does: no anti-aliasing but in ``area``, which enlarges as ``bilinear`` does."""
    smaller = size[0] <= frame.shape[1] and size[1] <= frame.shape[2]
    if mode == "area" and smaller:
        return F.interpolate(frame[None], size, mode="area")[0]
    mode = "bilinear" if mode == "area" else mode
    return F.interpolate(frame[None], size, mode=mode, align_corners=False)[0]


def _mode(rng: np.random.Generator) -> str:
    return str(rng.choice(("bilinear", "area", "bicubic")))


def _walk(rng: np.random.Generator, bounds: Range, step: float, count: int, start: float | None = None) -> list[float]:
    """A value for each frame: drawn, then changed by up to ``step`` each time, within ``bounds``."""
    value = float(rng.uniform(*bounds)) if start is None else start
    values = [value]
    for change in rng.uniform(-step, step, count - 1):
        values.append(float(np.clip(values[-1] + change, *bounds)))
    return values


def _blurred(clip: Clip, rng: np.random.Generator, stage: Pass) -> Clip:
    kind, size, count = str(rng.choice(_KERNELS, p=_SHARES)), int(rng.choice(_SIZES)), len(clip)
    if kind == "sinc":
        lowest = math.pi / 3 if size < 13 else math.pi / 5
        kernels = [sinc_kernel(omega, size) for omega in _walk(rng, (lowest, math.pi), 0.0628, count)]
    else:
        first, second = (_walk(rng, stage.sigma, 0.02, count) for _ in range(2))
        angles = _walk(rng, (-math.pi, math.pi), 0.31416, count)
        plateau = kind.startswith("plateau")
        betas = _walk(rng, (1.0, 2.0), 0.1, count) if plateau else _walk(rng, (0.5, 4.0), 0.05, count)
        if kind in ("iso", "aniso"):
            betas = [1.0] * count
        if not kind.endswith("aniso"):
            second = first
        kernels = [
            gaussian_kernel((a, b), angle, size, beta, "plateau" if plateau else "gaussian")
            for a, b, angle, beta in zip(first, second, angles, betas, strict=True)
        ]
    return [blur(frame, kernel) for frame, kernel in zip(clip, kernels, strict=True)]


def _resized(clip: Clip, rng: np.random.Generator, stage: Pass) -> Clip:
    low, high = stage.factor
    start = (float(rng.uniform(1.0, high)), float(rng.uniform(low, 1.0)), 1.0)[int(rng.choice(3, p=stage.modes))]
    mode = _mode(rng)
    height, width = clip[0].shape[1:]
    factors = _walk(rng, stage.factor, stage.factor_step, len(clip), start)
    sizes = [(_even(height * factor), _even(width * factor)) for factor in factors]
    return [resize(frame, size, mode) for frame, size in zip(clip, sizes, strict=True)]


def _even(side: float) -> int:
    return max(2 * int(side // 2), 2)


def _noisy(clip: Clip, rng: np.random.Generator, stage: Pass) -> Clip:
    gaussian, grey = rng.random() < 0.5, rng.random() < 0.4
    bounds, step = (stage.noise, 0.1) if gaussian else (stage.poisson, 0.005)
    strengths = _walk(rng, bounds, step, len(clip))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return [
        frame + strength * (_gaussian(frame, grey, generator) if gaussian else _poisson(frame, grey, generator))
        for frame, strength in zip(clip, strengths, strict=True)
    ]


def _gaussian(frame: Tensor, grey: bool, generator: torch.Generator) -> Tensor:
    return torch.randn((1 if grey else 3, *frame.shape[1:]), generator=generator)


def _poisson(frame: Tensor, grey: bool, generator: torch.Generator) -> Tensor:
    """Noise of photons, as if a level of brightness were one for every level that the frame has."""
    light = frame
    if grey:
        light = (frame * frame.new_tensor((0.299, 0.587, 0.114)).view(3, 1, 1)).sum(0, keepdim=True)
    light = light.round().clamp(0, 255)
    levels = 2.0 ** math.ceil(math.log2(int((torch.bincount(light.flatten().int()) > 0).sum())))
    noise: Tensor = torch.poisson(light * levels, generator=generator) / levels - light
    return noise


def _jpeg(clip: Clip, rng: np.random.Generator) -> Clip:
    result = []
    qualities = _walk(rng, (30.0, 95.0), 3.0, len(clip))
    for frame, quality in zip(clip, qualities, strict=True):
        file = io.BytesIO()
        Image.fromarray(_to_8_bit([frame])[0]).save(file, "JPEG", quality=round(quality))
        result.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float())
    return result


def _coded(clip: Clip, rng: np.random.Generator) -> Clip:
    """Through a video codec of a drawn bit rate, all frames in the size of the first."""
    height, width = clip[0].shape[1:]
    codec: Literal["libx264", "mpeg4"] = "mpeg4" if rng.random() < 1 / 3 else "libx264"
    bits = max(int(rng.integers(10_000, 100_001) * height * width / _CROP), _FEWEST)
    frames = _to_8_bit([resize(frame, (height, width), "bicubic") for frame in clip])
    return list(torch.from_numpy(through_bitrate(frames, codec, bits)).permute(0, 3, 1, 2).float())


def _to_8_bit(clip: Clip) -> np.ndarray:
    """``(t, h, w, 3)`` uint8."""
    return torch.stack(clip).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
