"""``vsvsr evaluate``: how good a clip is, with or without the truth."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from vsvsr.errors import UserError
from vsvsr.files import written_whole
from vsvsr.video.source import Pictures, open_video

app = typer.Typer()

_UNKNOWN_RATE = 25.0
"""Frames per second of a clip that tells none."""


@app.command()
def evaluate(
    clip: Annotated[Path, typer.Argument(help="The video to judge.")],
    truth: Annotated[Path | None, typer.Argument(help="What it should look like: same size, same frames.")] = None,
    source: Annotated[Path | None, typer.Option(help="The small video: adds bicubic and Lanczos to compare.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="How many frames to judge.")] = 100,
    perceptual: Annotated[
        bool, typer.Option("--perceptual", help="Add ERQA and ColorVideoVDP (JOD); needs the truth, takes minutes.")
    ] = False,
    per_frame: Annotated[Path | None, typer.Option(help="Write PSNR-Y and NIQE of every frame to this CSV.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write crops side by side to this PNG.")] = None,
) -> None:
    """PSNR and SSIM (Y and RGB) and flicker against the truth, NIQE without it.

    With --perceptual also ERQA, the share of the truth's edges that are restored in place (1 is best), and
    ColorVideoVDP's just-objectionable-differences on a full-HD monitor (10 is best); both need vsvsr[evaluate].
    """
    if perceptual and truth is None:
        raise UserError("--perceptual compares with the truth; give it after the clip")
    with ExitStack() as outputs:
        # Opened first: an hour of judging is not lost to a name that cannot be written.
        csv_path, sheet_path = (
            outputs.enter_context(written_whole(path)) if path else None for path in (per_frame, sheet)
        )
        _evaluate(clip, truth, source, frames, perceptual, csv_path, sheet_path)


def _evaluate(
    clip: Path,
    truth: Path | None,
    source: Path | None,
    frames: int,
    perceptual: bool,
    csv_path: Path | None,
    sheet_path: Path | None,
) -> None:
    from vsvsr.evaluation import compare
    from vsvsr.evaluation.perceptual import erqa, jod
    from vsvsr.models.fastreal.flow import LightFlow

    judged = _open(clip, frames)
    size = judged.size
    small_picture = min(size) < 192
    if truth is None and small_picture:
        raise UserError(
            f"{clip} is {size[1]}x{size[0]}: without a truth only NIQE can be told, and that needs at least 192x192"
        )
    clips: dict[str, compare.Clip] = {clip.stem: compare.EightBitClip(judged)}
    if source is not None:
        small = _open(source, frames)
        clips["bicubic"] = compare.EightBitClip(small, compare.enlarged(size, Image.Resampling.BICUBIC))
        clips["Lanczos"] = compare.EightBitClip(small, compare.enlarged(size, Image.Resampling.LANCZOS))
    reference = None if truth is None else compare.EightBitClip(_open(truth, frames))
    looks = ("ERQA", "JOD") if perceptual else ()
    table = Table("clip", "PSNR-Y", "PSNR", "SSIM-Y", "SSIM", "flicker", *looks, "NIQE", box=None, pad_edge=False)
    for name, pictures in clips.items():
        cells = ["", "", "", "", ""]
        if reference is not None:
            scores = compare.score(pictures, reference, LightFlow().requires_grad_(False))
            cells = [f"{scores.psnr_y:.2f}", f"{scores.psnr_rgb:.2f}", f"{scores.ssim_y:.4f}"]
            cells += [f"{scores.ssim_rgb:.4f}", f"{scores.flicker:.3f}"]
            if perceptual:
                rate = judged.frames_per_second or _UNKNOWN_RATE
                cells += [f"{erqa(pictures, reference):.3f}", f"{jod(pictures, reference, frames_per_second=rate):.2f}"]
        table.add_row(name, *cells, "" if small_picture else f"{compare.mean_niqe(pictures):.3f}")
    Console().print(table)
    if csv_path is not None:
        compare.write_frame_scores(csv_path, clips, reference)
    if sheet_path is not None:
        if reference is not None:
            clips["truth"] = reference
        height, width = min(size[0], 240), min(size[1], 320)
        crop = ((size[1] - width) // 2, (size[0] - height) // 2, width, height)
        length = len(judged)
        compare.sheet(clips, frames=sorted({0, length // 2, length - 1}), crop=crop).save(sheet_path, "PNG")


def _open(path: Path, frames: int) -> Pictures:
    return Pictures(open_video(path).clip)[:frames]
