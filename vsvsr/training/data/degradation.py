"""Low-resolution clips: blur, noise, downsampling and H.264 (eq. 9 of FastRealVSR), or plain downsampling.

Two families of parameters: eq. 9's own, weak noise and strong compression, and noisy captures (tapes, film grain,
cameras in the dark) that were encoded well. Footage can have been interlaced or compressed before.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr.video.ffmpeg import Deinterlacer, through_codec, through_fields, through_x264

Resize = Literal["area", "bilinear", "bicubic"]

_RADIUS = 10
_RESIZES: tuple[Resize, ...] = ("area", "bilinear", "bicubic")
_DEINTERLACERS: tuple[Deinterlacer, ...] = ("bwdif", "yadif")


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """Parameters of one clip.

    Attributes:
        sigma: standard deviations of the Gaussian blur along its two axes, in high-resolution pixels.
        angle: direction of the first axis, radians.
        noise: standard deviation of the noise in 8-bit steps, before the downsampling.
        grey_noise: the same noise in all three colours.
        grain: standard deviation of the Gaussian that correlates neighbouring noise samples, in high-resolution
            pixels; the noise keeps its variance. 0 is white noise.
        noise_slope: how the noise depends on brightness ``x`` (0 to 255): its standard deviation is
            ``noise * (1 + noise_slope * (x / 127.5 - 1))``. Positive as photon noise in linear light, negative as
            noise that gamma lifts in the shadows; from -1 to 1.
        resize: how to downsample; bilinear and bicubic read the nearest pixels without anti-aliasing, as OpenCV does.
        crf: constant rate factor of x264.
        profile: H.264 profile.
        deinterlacer: the footage was interlaced, one field of each frame, and this filter of ffmpeg made frames of it;
            None for frames from the start.
        prior_compression: codec, and its quality, of a compression before the last one: ``mpeg2video`` with a
            quantiser from 1 up, as on DVDs, or ``libx264`` with a crf; None for one compression only.
    """

    sigma: tuple[float, float]
    angle: float = 0.0
    noise: float
    grey_noise: bool = False
    grain: float = 0.0
    noise_slope: float = 0.0
    resize: Resize = "bicubic"
    crf: int
    profile: str = "high"
    deinterlacer: Deinterlacer | None = None
    prior_compression: tuple[Literal["mpeg2video", "libx264"], int] | None = None

    @classmethod
    def draw(cls, rng: np.random.Generator, *, scale: int) -> "Degradation":
        """Parameters with the ranges of eq. 9 and the operators of AnimeSR's loader.

        Weaker blur and downsampling without aliasing are drawn more often than the rest of their ranges: as footage is.
        The ranges are those of x4; with a smaller scale blur and noise shrink, and low-resolution frames stay as they
        are.
        """
        share = scale / 4
        first = share * _draw_sigma(rng)
        second = first if rng.random() < 0.7 else share * _draw_sigma(rng)
        return cls(
            sigma=(first, second),
            angle=rng.uniform(0, np.pi),
            noise=share * rng.uniform(1, 5),
            grey_noise=bool(rng.random() < 0.5),
            resize=_RESIZES[int(rng.choice(3, p=(0.6, 0.15, 0.25)))],
            crf=int(rng.integers(18, 36)),
            profile=str(rng.choice(["baseline", "main", "high"], p=(0.1, 0.2, 0.7))),
        )

    @classmethod
    def draw_noisy(cls, rng: np.random.Generator, *, scale: int) -> "Degradation":
        """Parameters of a noisy capture that was encoded well: there earlier frames know much about the current one.

        Noise of 8 to 30 steps, white or grain, half of the time dependent on brightness; blur below 1.2; crf 8 to 24.
        Blur, noise and grain shrink with the scale, as in `draw`.
        """
        share = scale / 4
        sigma = share * rng.uniform(0.2, 1.2)
        return cls(
            sigma=(sigma, sigma),
            noise=share * rng.uniform(8, 30),
            grey_noise=bool(rng.random() < 0.5),
            grain=share * rng.uniform(0.5, 2.0) if rng.random() < 0.5 else 0.0,
            noise_slope=rng.uniform(-0.8, 0.8) if rng.random() < 0.5 else 0.0,
            resize=_RESIZES[int(rng.choice(3, p=(0.6, 0.15, 0.25)))],
            crf=int(rng.integers(8, 25)),
        )

    @classmethod
    def draw_light(cls, rng: np.random.Generator, *, scale: int) -> "Degradation":
        """Parameters of good footage: blur below 0.8, noise below 1.5 steps, crf 12 to 24."""
        share = scale / 4
        sigma = share * rng.uniform(0.2, 0.8)
        return cls(
            sigma=(sigma, sigma),
            noise=share * rng.uniform(0, 1.5),
            resize=_RESIZES[int(rng.choice(3, p=(0.6, 0.15, 0.25)))],
            crf=int(rng.integers(12, 25)),
        )

    @classmethod
    def draw_heavy(cls, rng: np.random.Generator, *, scale: int) -> "Degradation":
        """Parameters of the worst footage of eq. 9: blur 1.8 to 3, noise 2 to 5 steps, crf 28 to 35."""
        share = scale / 4
        sigma = share * rng.uniform(1.8, 3.0)
        return cls(
            sigma=(sigma, sigma),
            noise=share * rng.uniform(2, 5),
            grey_noise=bool(rng.random() < 0.5),
            resize=_RESIZES[int(rng.choice(3, p=(0.6, 0.15, 0.25)))],
            crf=int(rng.integers(28, 36)),
        )

    def with_prior_processing(
        self, rng: np.random.Generator, *, interlaced: float, recompressed: float
    ) -> "Degradation":
        """The same after interlacing, a prior compression, or both, each with the given probability."""
        deinterlacer = _DEINTERLACERS[int(rng.integers(2))] if rng.random() < interlaced else None
        prior: tuple[Literal["mpeg2video", "libx264"], int] | None = None
        if rng.random() < recompressed:
            dvd = rng.random() < 0.5
            prior = ("mpeg2video", int(rng.integers(2, 11))) if dvd else ("libx264", int(rng.integers(18, 36)))
        return replace(self, deinterlacer=deinterlacer, prior_compression=prior)


def _draw_sigma(rng: np.random.Generator) -> float:
    return float(0.2 + 2.8 * rng.random() ** 1.7)


def blur_kernel(sigma: tuple[float, float], angle: float) -> Tensor:
    """A rotated Gaussian ``(21, 21)`` that sums to 1."""
    line = torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    cosine, sine = np.cos(angle), np.sin(angle)
    along, across = cosine * x + sine * y, -sine * x + cosine * y
    kernel = torch.exp(-0.5 * ((along / sigma[0]) ** 2 + (across / sigma[1]) ** 2))
    return kernel / kernel.sum()


def _line_filter(taps: Tensor, size: int) -> Tensor:
    """A one-dimensional filter with replicated borders as a matrix ``(size, size)``.

    As matrix products the blur of a clip takes a twentieth of the time of a depthwise convolution on a CPU.
    """
    matrix = torch.zeros(size, size)
    rows = torch.arange(size)
    for offset, tap in zip(range(-_RADIUS, _RADIUS + 1), taps.tolist(), strict=True):
        columns = (rows + offset).clamp(0, size - 1)
        matrix.index_put_((rows, columns), torch.tensor(tap), accumulate=True)
    return matrix


def blur(images: Tensor, kernel: Tensor) -> Tensor:
    """Filter ``(..., h, w)`` with ``(21, 21)`` and replicated borders, as a sum of separable filters."""
    u, s, v = torch.linalg.svd(kernel)
    rank = int((s > 1e-4 * s[0]).sum())
    height, width = images.shape[-2:]
    result = torch.zeros_like(images)
    for i in range(rank):
        vertical = _line_filter(u[:, i] * s[i], height)
        horizontal = _line_filter(v[i], width)
        result += vertical @ (images @ horizontal.T)
    return result


def downsample(images: Tensor, scale: int, resize: Resize) -> Tensor:
    """``(n, c, h, w)`` to ``(n, c, h / scale, w / scale)``."""
    if resize == "area":
        return F.avg_pool2d(images, scale)
    height, width = images.shape[-2:]
    return F.interpolate(images, (height // scale, width // scale), mode=resize, align_corners=False)


def shrink(frames: np.ndarray, *, scale: int) -> np.ndarray:
    """Bicubic downsampling with anti-aliasing and nothing else: what published BasicVSR and MIA-VSR were trained for.

    Args:
        frames: ``(t, h, w, 3)`` uint8, sides multiples of ``scale``.
        scale: downsampling factor.

    Returns:
        ``(t, h / scale, w / scale, 3)`` uint8.
    """
    height, width = frames.shape[1:3]
    images = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float()
    small = F.interpolate(images, (height // scale, width // scale), mode="bicubic", antialias=True)
    return small.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def noise_field(degradation: Degradation, image: Tensor, generator: torch.Generator) -> Tensor:
    """Noise to add to an image ``(3, h, w)`` of 0 to 255, in the same steps."""
    border = _RADIUS if degradation.grain else 0
    channels, sides = 1 if degradation.grey_noise else 3, (side + 2 * border for side in image.shape[1:])
    noise = torch.randn((channels, *sides), generator=generator)
    if degradation.grain:
        kernel = blur_kernel((degradation.grain, degradation.grain), 0.0)
        noise = blur(noise, kernel / kernel.square().sum().sqrt())[:, border:-border, border:-border]
    if degradation.noise_slope:
        noise = noise * (1 + degradation.noise_slope * (image.clamp(0, 255) / 127.5 - 1))
    return noise * degradation.noise


def capture(frames: np.ndarray, degradation: Degradation, *, scale: int, seed: int) -> np.ndarray:
    """The low-resolution clip as a camera gives it: blur, noise and downsampling, no compression.

    Arguments and result are those of `degrade`.
    """
    generator = torch.Generator().manual_seed(seed)
    kernel = blur_kernel(degradation.sigma, degradation.angle)
    small = []
    for frame in torch.from_numpy(frames.copy()):
        image = blur(frame.permute(2, 0, 1).float(), kernel)
        image = image + noise_field(degradation, image, generator)
        small.append(downsample(image[None], scale, degradation.resize)[0])
    return torch.stack(small).permute(0, 2, 3, 1).round_().clamp_(0, 255).to(torch.uint8).contiguous().numpy()


def degrade(frames: np.ndarray, degradation: Degradation, *, scale: int, seed: int) -> np.ndarray:
    """The low-resolution clip.

    Args:
        frames: ``(t, h, w, 3)`` uint8, sides multiples of ``2 * scale``; the height, where footage was interlaced, of
            ``4 * scale``.
        degradation: what to do.
        scale: downsampling factor.
        seed: of the noise.

    Returns:
        ``(t, h / scale, w / scale, 3)`` uint8.
    """
    pixels = capture(frames, degradation, scale=scale, seed=seed)
    codec, quality = degradation.prior_compression or ("ffv1", 0)
    if degradation.deinterlacer is not None:
        pixels = through_fields(pixels, codec, quality, deinterlacer=degradation.deinterlacer)
    elif degradation.prior_compression is not None:
        pixels = through_codec(pixels, codec, quality)
    return through_x264(pixels, crf=degradation.crf, profile=degradation.profile)
