"""A film in, the film as a filter makes it out: one pass, from opening the source to naming the result."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import vapoursynth as vs

from vsvsr.errors import UserError, WrongArgumentError
from vsvsr.files import check_target, publish, scratch_beside
from vsvsr.video.encoder import Encoding, encode, is_image, is_numbered, wants_rgb
from vsvsr.video.ffmpeg import is_truncated, picture_size
from vsvsr.video.source import from_rgb, one_line_errors, open_video, to_integer_rgb


@dataclass(frozen=True, kw_only=True)
class Film:
    """What was written: frames, and their size in the file."""

    frames: int
    width: int
    height: int


def process_film(
    source_path: Path,
    target: Path,
    change: Callable[[vs.VideoNode], vs.VideoNode],
    *,
    frames: slice = slice(None),
    encoding: Encoding,
    overwrite: bool,
    on_index: Callable[[int], None] = lambda percent: None,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> Film:
    """Write what ``change`` makes of the source to ``target``, which appears when it is whole.

    Args:
        source_path: a video file, or a folder of numbered pictures.
        target: a video file, a picture, or with a name like ``frame_%04d.png`` numbered pictures.
        change: from RGBS to RGB of any size with as many frames.
        frames: the part to write; the pixels are those of the whole.
        encoding: how it is compressed.
        overwrite: replace what is there.
        on_index: hears how far the source is indexed, in percent.
        on_frame: hears how many frames of how many are done.

    Raises:
        UserError: something about the files, the filter or ffmpeg. If the source is truncated, after what there is of
            it has been written.
    """
    if not source_path.is_file() and not source_path.is_dir():
        raise UserError(f"{source_path} is not a file, nor a folder of numbered pictures")
    _check_free(source_path, target, overwrite)
    with scratch_beside(target) as folder:
        source = open_video(source_path, on_index)
        with one_line_errors():
            changed = change(source.clip)
        first, last, _ = frames.indices(changed.num_frames)
        if first >= last:
            raise WrongArgumentError(f"frames {first} to {last}: {source_path} has {changed.num_frames}")
        clip = (to_integer_rgb if wants_rgb(target) else from_rgb)(changed, source)[first:last]
        targets = [target]
        if is_numbered(target):
            targets = [target.with_name(_numbered(target.name, number)) for number in range(first, last)]
            for each in targets:
                _check_free(source_path, each, overwrite)
        elif is_image(target) and clip.num_frames > 1:
            raise WrongArgumentError(
                f"{target} holds one frame, not {clip.num_frames}; "
                f"give --start and --end, or number the files: {target.stem}_%04d{target.suffix}"
            )
        with encode(clip, source, folder / target.name, target, first=first, encoding=encoding) as write:
            on_frame(0, clip.num_frames)
            with one_line_errors():
                for done, frame in enumerate(clip.frames(close=True), start=1):
                    write(frame)
                    on_frame(done, clip.num_frames)
        width, height = picture_size(folder / targets[0].name)
        publish(folder, targets)
    if last == source.clip.num_frames and source_path.is_file() and is_truncated(source_path):
        raise UserError(
            f"{source_path} is truncated: it ends before the time that it says; "
            f"the {clip.num_frames} frames that are in it are in {target}"
        )
    return Film(frames=clip.num_frames, width=width or clip.width, height=height or clip.height)


def _check_free(source: Path, target: Path, overwrite: bool) -> None:
    check_target(target)
    if target.exists():
        if target.samefile(source):
            raise UserError(f"{target} is the input; choose another name")
        if not target.is_file():
            raise UserError(f"{target} is not a file; choose another name")
        if not overwrite:
            raise UserError(f"{target} exists; choose another name or give --overwrite")


def _numbered(pattern: str, number: int) -> str:
    """The name of one picture of ``frame_%04d.png``."""
    return re.sub(r"%(\d*)d", lambda found: f"{number:0{int(found[1] or 1)}d}", pattern, count=1)
