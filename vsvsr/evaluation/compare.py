"""Scores of a clip against its truth, and sheets of crops side by side."""

import csv
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vsvsr.errors import UserError
from vsvsr.evaluation.metrics import flicker, luma, psnr, round_to_8_bit, ssim
from vsvsr.evaluation.niqe import niqe

Flow = Callable[[Tensor, Tensor], Tensor]
"""Flow from the first picture into the second, ``(n, 3, h, w)`` in [0, 1] to ``(n, 2, h, w)``."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Means over the frames of a clip.

    Attributes:
        psnr_y: dB, on Y.
        psnr_rgb: dB.
        ssim_y: on Y.
        ssim_rgb: mean over the colours.
        flicker: see `vsvsr.evaluation.metrics.flicker`, on Y; lower is steadier.
    """

    psnr_y: float
    psnr_rgb: float
    ssim_y: float
    ssim_rgb: float
    flicker: float


def to_tensor(frames: np.ndarray) -> Tensor:
    """``(t, h, w, 3)`` uint8 to ``(t, 3, h, w)`` in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255


def score(clip: Tensor, truth: Tensor, flow: Flow) -> Scores:
    """Compare two clips ``(t, 3, h, w)`` in [0, 1]; ``flow`` estimates the motion of the truth.

    Raises:
        UserError: the clips differ in size or length.
    """
    if clip.shape != truth.shape:
        given, wanted = (f"{x.shape[3]}x{x.shape[2]}, {x.shape[0]} frames" for x in (clip, truth))
        raise UserError(f"a clip of {given} cannot be compared with a truth of {wanted}; both must be alike")
    rows, luminance = [], []
    for i in range(len(clip)):
        picture, reference = round_to_8_bit(clip[i : i + 1]), truth[i : i + 1]
        pair = luma(picture), luma(reference)
        colours = picture * 255, reference * 255
        rows.append([float(value) for value in (psnr(*pair), psnr(*colours), ssim(*pair), ssim(*colours))])
        luminance.append(pair)
    changes = []
    for i, ((before, was), (now, is_)) in enumerate(itertools.pairwise(luminance)):
        motion = flow(truth[i + 1 : i + 2], truth[i : i + 1])
        changes.append(flicker(torch.cat((before, now)), torch.cat((was, is_)), motion))
    psnr_y, psnr_rgb, ssim_y, ssim_rgb = np.mean(rows, axis=0).tolist()
    steady = float(np.mean(changes)) if changes else 0.0
    return Scores(psnr_y=psnr_y, psnr_rgb=psnr_rgb, ssim_y=ssim_y, ssim_rgb=ssim_rgb, flicker=steady)


def mean_niqe(clip: Tensor) -> float:
    """NIQE of the first, the middle and the last frame of ``(t, 3, h, w)`` in [0, 1], as the papers report it."""
    chosen = sorted({0, len(clip) // 2, len(clip) - 1})
    return float(np.mean([niqe(luma(round_to_8_bit(clip[i : i + 1]))[0, 0]) for i in chosen]))


def frame_scores(clip: Iterable[Tensor], truth: Iterable[Tensor] | None) -> Iterator[tuple[float | None, float | None]]:
    """PSNR-Y in dB (None without a truth) and NIQE (None below 192x192) of each frame ``(3, h, w)`` in [0, 1].

    A result that drifts or grows artifacts loses PSNR and gains NIQE with the length of the clip.
    """
    for picture, reference in zip(clip, itertools.repeat(None) if truth is None else truth, strict=False):
        luminance = luma(round_to_8_bit(picture[None]))
        distance = None if reference is None else float(psnr(luminance, luma(reference[None])))
        yield distance, niqe(luminance[0, 0]) if min(luminance.shape[-2:]) >= 192 else None


def write_frame_scores(path: Path, clips: dict[str, Tensor], truth: Tensor | None) -> None:
    """`frame_scores` of every clip as CSV with the columns ``clip,frame,psnr_y,niqe``; what is unknown is empty."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("clip", "frame", "psnr_y", "niqe"))
        for name, clip in clips.items():
            for frame, scores in enumerate(frame_scores(clip, truth)):
                writer.writerow((name, frame, *("" if value is None else f"{value:.4f}" for value in scores)))


def enlarge(clip: Tensor, size: tuple[int, int], filter_: Image.Resampling) -> Tensor:
    """``(t, 3, h, w)`` in [0, 1] enlarged to ``size`` (height, width) with a classical filter."""
    frames = (clip.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    pictures = [np.asarray(Image.fromarray(frame).resize(size[::-1], filter_)) for frame in frames]
    return to_tensor(np.stack(pictures))


def sheet(clips: dict[str, Tensor], *, frames: list[int], crop: tuple[int, int, int, int]) -> Image.Image:
    """The same crop of several clips side by side, one row for each frame.

    Args:
        clips: label and clip ``(t, 3, h, w)`` in [0, 1], all of one size.
        frames: which frames.
        crop: left, top, width, height.
    """
    left, top, width, height = crop
    title = 18
    picture = Image.new("RGB", (len(clips) * (width + 4) - 4, len(frames) * (height + 4) - 4 + title), "white")
    draw = ImageDraw.Draw(picture)
    for column, (label, clip) in enumerate(clips.items()):
        draw.text((column * (width + 4) + 2, 2), label, fill="black", font_size=13)
        for row, frame in enumerate(frames):
            piece = round_to_8_bit(clip[frame, :, top : top + height, left : left + width])
            pixels = (piece * 255).round().byte().permute(1, 2, 0).numpy()
            picture.paste(Image.fromarray(pixels), (column * (width + 4), title + row * (height + 4)))
    return picture
