"""Scores of a clip against its truth, and sheets of crops side by side."""

import csv
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vsvsr.errors import UserError
from vsvsr.evaluation.metrics import check_size, flicker, luma, mean_of_finite, psnr, round_to_8_bit, ssim
from vsvsr.evaluation.niqe import niqe

Flow = Callable[[Tensor, Tensor], Tensor]
"""Flow from the first picture into the second, ``(n, 3, h, w)`` in [0, 1] to ``(n, 2, h, w)``."""


class Frames[T](Protocol):
    """Frames of one size: a sequence, or what decodes each when it is asked for."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[T]: ...

    def __getitem__(self, index: int, /) -> T: ...


Clip = Frames[Tensor]
"""Pictures ``(3, h, w)`` in [0, 1]; a tensor ``(t, 3, h, w)`` is one."""


class EightBitClip:
    """Pictures ``(h, w, 3)`` uint8 as a `Clip`; each is converted when it is asked for, after ``change`` if given."""

    def __init__(
        self, frames: Frames[np.ndarray], change: Callable[[np.ndarray], np.ndarray] = lambda frame: frame
    ) -> None:
        self._frames, self._change = frames, change

    def __len__(self) -> int:
        return len(self._frames)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self._convert, self._frames)

    def __getitem__(self, index: int, /) -> Tensor:
        return self._convert(self._frames[index])

    def _convert(self, frame: np.ndarray) -> Tensor:
        return to_tensor(self._change(frame)[None])[0]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Means over the frames of a clip.

    Attributes:
        psnr_y: dB, on Y; of the frames that differ from the truth, infinite if none does.
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


def score(clip: Clip, truth: Clip, flow: Flow) -> Scores:
    """Compare two clips; ``flow`` estimates the motion of the truth. Two frames of each are held at a time.

    Raises:
        UserError: the clips differ in size or length.
    """
    given, wanted = (f"{x[0].shape[2]}x{x[0].shape[1]}, {len(x)} frames" for x in (clip, truth))
    if given != wanted:
        raise UserError(f"a clip of {given} cannot be compared with a truth of {wanted}; both must be alike")
    check_size(clip[0])
    rows, changes = [], []
    before: tuple[Tensor, Tensor, Tensor] | None = None
    for frame, true_frame in zip(clip, truth, strict=True):
        picture, reference = round_to_8_bit(frame[None]), true_frame[None]
        y, true_y = luma(picture), luma(reference)
        colours = picture * 255, reference * 255
        rows.append([float(value) for value in (psnr(y, true_y), psnr(*colours), ssim(y, true_y), ssim(*colours))])
        if before is not None:
            motion = flow(reference, before[2])
            changes.append(flicker(torch.cat((before[0], y)), torch.cat((before[1], true_y)), motion))
        before = y, true_y, reference
    psnr_y, psnr_rgb, ssim_y, ssim_rgb = (mean_of_finite(column) for column in zip(*rows, strict=True))
    steady = float(np.mean(changes)) if changes else 0.0
    return Scores(psnr_y=psnr_y, psnr_rgb=psnr_rgb, ssim_y=ssim_y, ssim_rgb=ssim_rgb, flicker=steady)


def mean_niqe(clip: Clip) -> float:
    """NIQE of the first, the middle and the last frame, as the papers report it, without flat ones; NaN if all are."""
    chosen = sorted({0, len(clip) // 2, len(clip) - 1})
    scores = [niqe(luma(round_to_8_bit(clip[i][None]))[0, 0]) for i in chosen]
    return mean_of_finite(scores)


def frame_scores(clip: Iterable[Tensor], truth: Iterable[Tensor] | None) -> Iterator[tuple[float | None, float | None]]:
    """PSNR-Y in dB (None without a truth) and NIQE (None below 192x192, NaN where it is flat) of each frame.

    A result that drifts or grows artifacts loses PSNR and gains NIQE with the length of the clip.
    """
    for picture, reference in zip(clip, itertools.repeat(None) if truth is None else truth, strict=False):
        luminance = luma(round_to_8_bit(picture[None]))
        distance = None if reference is None else float(psnr(luminance, luma(reference[None])))
        yield distance, niqe(luminance[0, 0]) if min(luminance.shape[-2:]) >= 192 else None


def write_frame_scores(path: Path, clips: Mapping[str, Clip], truth: Clip | None) -> None:
    """`frame_scores` of every clip as CSV with the columns ``clip,frame,psnr_y,niqe``; what is unknown is empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("clip", "frame", "psnr_y", "niqe"))
        for name, clip in clips.items():
            for frame, scores in enumerate(frame_scores(clip, truth)):
                writer.writerow((name, frame, *map(_cell, scores)))


def _cell(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"


def enlarged(size: tuple[int, int], filter_: Image.Resampling) -> Callable[[np.ndarray], np.ndarray]:
    """Enlarges pictures ``(h, w, 3)`` uint8 to ``size`` (height, width) with a classical filter."""
    return lambda frame: np.array(Image.fromarray(frame).resize(size[::-1], filter_))


def sheet(clips: Mapping[str, Clip], *, frames: list[int], crop: tuple[int, int, int, int]) -> Image.Image:
    """The same crop of several clips side by side, one row for each frame.

    Args:
        clips: label and clip, all of one size.
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
            piece = round_to_8_bit(clip[frame][:, top : top + height, left : left + width])
            pixels = (piece * 255).round().byte().permute(1, 2, 0).numpy()
            picture.paste(Image.fromarray(pixels), (column * (width + 4), title + row * (height + 4)))
    return picture
