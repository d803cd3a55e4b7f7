"""``vsvsr evaluate``: how good a clip is, with or without the truth."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vsvsr.errors import UserError, WrongArgumentError
from vsvsr.files import refuse_input, written_whole
from vsvsr.video.picture import open_picture
from vsvsr.video.source import Pictures, image_sequence, open_video

app = typer.Typer()

_UNKNOWN_RATE = 25.0
"""Frames per second of a clip that tells none."""


@app.command()
def evaluate(
    clip: Annotated[Path, typer.Argument(help="The video to judge; with --protocol a folder of clips.")],
    truth: Annotated[Path | None, typer.Argument(help="What it should look like: same size, same frames.")] = None,
    protocol: Annotated[
        Literal["reds4", "vid4", "vimeo"] | None,
        typer.Option(help="Judge a set as papers do: folders of pictures, one for each clip (000, calendar, ...)."),
    ] = None,
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
    ColorVideoVDP's just-objectionable-differences on a full-HD monitor (10 is best); both need vsvsr\\[evaluate].

    With --protocol CLIP and TRUTH hold a folder of numbered pictures for each clip; PSNR and SSIM are means over the
    frames of a clip, then over clips, uncropped. reds4: RGB of 000, 011, 015, 020. vid4: Y of calendar, city, foliage,
    walk. vimeo: Y of the middle frame of the clips in TRUTH/sep_testlist.txt, the truth being in TRUTH/sequences.
    """
    if protocol is not None:
        if truth is None:
            raise UserError("--protocol compares with the truth; give it after the clips")
        if perceptual or not (source is per_frame is sheet is None):
            raise WrongArgumentError("--protocol judges whole sets; it goes with no other option")
        _evaluate_set(protocol, clip, truth)
        return
    if perceptual and truth is None:
        raise UserError("--perceptual compares with the truth; give it after the clip")
    given = [path for path in (clip, truth, source) if path is not None]
    pictures = [picture for folder in given if folder.is_dir() for picture in image_sequence(folder)]
    for output in filter(None, (per_frame, sheet)):
        refuse_input(output, *given, *pictures)
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
    own = f"{clip.stem} (judged)" if clip.stem in ("bicubic", "Lanczos", "truth") else clip.stem
    clips: dict[str, compare.Clip] = {own: compare.EightBitClip(judged)}
    if source is not None:
        small = _open(source, frames)
        if len(small) != len(judged):
            raise UserError(f"{source} has {len(small)} frames, {clip} {len(judged)}; they must be as many")
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
        distance = math.nan if small_picture else compare.mean_niqe(pictures)
        table.add_row(Text(name), *cells, "" if math.isnan(distance) else f"{distance:.3f}")
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


def _evaluate_set(name: str, results: Path, truth: Path) -> None:
    from vsvsr.evaluation import compare, protocols

    protocol = protocols.PROTOCOLS[name]
    channel = "Y" if protocol.y else "RGB"
    table = Table("clip", f"PSNR ({channel})", f"SSIM ({channel})", box=None, pad_edge=False)
    scores = []
    for pair in protocols.find_pairs(protocol, results, truth):
        files = protocols.judged(protocol, pair, *(image_sequence(path) for path in (pair.result, pair.truth)))
        pictures = (
            (compare.to_tensor(_read(one)[None])[0], compare.to_tensor(_read(other)[None])[0]) for one, other in files
        )
        scores.append(protocols.score_pictures(protocol, pictures))
        if protocol.clips:
            table.add_row(pair.name, *_cells(scores[-1]))
    table.add_row(f"mean of {len(scores)}", *_cells(np.mean(scores, axis=0).tolist()))
    Console().print(table)


def _cells(scores: Sequence[float]) -> tuple[str, str]:
    return f"{scores[0]:.2f}", f"{scores[1]:.4f}"


def _read(path: Path) -> np.ndarray:
    """A picture ``(h, w, 3)`` of uint8."""
    with open_picture(path) as opened:
        return np.array(opened.convert("RGB"))


def _open(path: Path, frames: int) -> Pictures:
    return Pictures(open_video(path).clip)[:frames]
