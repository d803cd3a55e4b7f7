"""A film to be written: its source, its frames, its name; and films that are pictures, which are written in one go."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import vapoursynth as vs

from vsvsr.errors import UserError, WrongArgumentError
from vsvsr.files import check_target, publish, refuse_input, scratch_beside
from vsvsr.video.encoder import Encoding, encode, is_image, is_numbered, wants_rgb
from vsvsr.video.ffmpeg import is_truncated, picture_size
from vsvsr.video.size import Size, scaled_down
from vsvsr.video.source import Video, from_rgb, image_sequence, one_line_errors, open_video, to_integer_rgb


@dataclass(frozen=True, kw_only=True)
class Film:
    """A film to be written.

    Attributes:
        source: what it is made of.
        clip: all frames of the source as the filter makes them, in the format that is written.
        frames: those to write.
    """

    source: Video
    clip: vs.VideoNode
    frames: range

    @property
    def is_cut(self) -> bool:
        """Whether frames of the source are missing."""
        return len(self.frames) != len(self.source.timestamps) - 1


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written.

    Attributes:
        frames: how many.
        width: of the picture in the file.
        height: likewise.
    """

    frames: int
    width: int
    height: int


def check_paths(source: Path, target: Path, *, overwrite: bool) -> None:
    """Refuse a source that is not there and a target that cannot be, or is there already.

    Raises:
        UserError: one line about it.
    """
    if not source.is_file() and not source.is_dir():
        raise UserError(f"{source} is not a file, nor a folder of numbered pictures")
    check_target(target)
    if "\n" in str(target):
        raise UserError(f"{target} has a line break in its name; choose another one")
    refuse_input(target, source)
    if target.exists():
        if not target.is_file():
            raise UserError(f"{target} is not a file; choose another name")
        if not overwrite:
            raise UserError(f"{target} exists; choose another name or give --overwrite")


def open_film(
    path: Path,
    target: Path,
    change: Callable[[vs.VideoNode], vs.VideoNode],
    *,
    frames: slice = slice(None),
    size: Size | None = None,
    rate: Fraction | None = None,
    on_index: Callable[[int], None] = lambda percent: None,
) -> Film:
    """Open a source and apply a filter to it.

    Args:
        path: a video file, or a folder of numbered pictures.
        target: what it will be written to; decides about the format.
        change: from RGBS to RGB of any size with as many frames.
        frames: the part to write; the pixels are those of the whole.
        size: to scale the filter's result down to.
        rate: frames a second of a folder of pictures, otherwise 25.
        on_index: hears how far the source is indexed, in percent.

    Raises:
        UserError: something about the file or the filter; ``WrongArgumentError``: about ``frames`` or ``size``.
    """
    source = open_video(path, on_index, rate=rate)
    with one_line_errors():
        changed = change(source.clip)
        if size is not None:
            changed = scaled_down(changed, source, size)
    first, last, _ = frames.indices(changed.num_frames)
    if first >= last:
        raise WrongArgumentError(f"frames {first} to {last}: {path} has {changed.num_frames}")
    clip = (to_integer_rgb if wants_rgb(target) else from_rgb)(changed, source)
    return Film(source=source, clip=clip, frames=range(first, last))


def write_pictures(
    film: Film, target: Path, *, encoding: Encoding, overwrite: bool, on_frame: Callable[[int, int], None]
) -> Written:
    """Write a film as one picture, as numbered pictures or as a GIF; they appear when all are whole.

    Args:
        film: what to write.
        target: a picture, with a name like ``frame_%04d.png`` numbered ones.
        encoding: how it is compressed.
        overwrite: replace what is there.
        on_frame: hears how many frames of how many are done.

    Raises:
        UserError: something about the files, the filter or ffmpeg.
    """
    frames = film.frames
    clip = film.clip[frames.start : frames.stop]
    targets = picture_files(film, target, overwrite=overwrite)
    zero = film.source.timestamps[frames.start]
    with scratch_beside(target) as folder:
        path = folder / target.name
        with encode(clip, film.source, path, target, first=frames.start, zero=zero, encoding=encoding) as write:
            on_frame(0, len(frames))
            with one_line_errors():
                for done, frame in enumerate(clip.frames(close=True), start=1):
                    write(frame)
                    on_frame(done, len(frames))
        width, height = picture_size(folder / targets[0].name)
        publish(folder, targets)
    return Written(frames=len(frames), width=width or clip.width, height=height or clip.height)


def picture_files(film: Film, target: Path, *, overwrite: bool) -> list[Path]:
    """The files that `write_pictures` would write.

    Raises:
        UserError: one of them cannot be; ``WrongArgumentError``: one picture is to hold several frames.
    """
    targets, frames, source = [target], film.frames, film.source.path
    if is_numbered(target):
        targets = [target.with_name(_numbered(target.name, number)) for number in frames]
        for each in targets:
            check_paths(source, each, overwrite=overwrite)
    elif is_image(target) and len(frames) > 1:
        raise WrongArgumentError(
            f"{target} holds one frame, not {len(frames)}; "
            f"give --start and --end, or number the files: {target.stem}_%04d{target.suffix}"
        )
    if source.is_dir() and source.samefile(target.parent):
        own = {each.name for each in targets} & {picture.name for picture in image_sequence(source)}
        if own:
            raise UserError(f"{target.with_name(min(own))} is the input; choose another name")
    return targets


def refuse_truncated(film: Film, target: Path) -> None:
    """Say that a source is not whole, if the film goes up to its end; what there is of it has been written.

    Raises:
        UserError: it is truncated.
    """
    path = film.source.path
    if film.frames.stop == film.source.clip.num_frames and path.is_file() and is_truncated(path):
        raise UserError(
            f"{path} is truncated: it ends before its container says; "
            f"the {len(film.frames)} frames that are in it are in {target}"
        )


def _numbered(pattern: str, number: int) -> str:
    """The name of one picture of ``frame_%04d.png``."""
    return re.sub(r"%(\d*)d", lambda found: f"{number:0{int(found[1] or 1)}d}", pattern, count=1)
