"""Parts of a film become one file: the picture as it is in them, and from the source what belongs to it."""

import os
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from vsvsr.errors import UserError
from vsvsr.files import scratch_folder
from vsvsr.video.encoder import Encoding, complaint
from vsvsr.video.ffmpeg import describe, run, url
from vsvsr.video.film import Film
from vsvsr.video.matroska import TIMESTAMPS_PER_SECOND

_MOV = (".mp4", ".m4v", ".mov")
_KEEP_TIMES = (*_MOV, ".mkv", ".webm", ".ts", ".mts", ".m2ts")
"""Containers in which every frame has a timestamp."""

_MICROSECOND = TIMESTAMPS_PER_SECOND // 1_000_000
_MILLISECOND = TIMESTAMPS_PER_SECOND // 1000
"""Matroska counts milliseconds, and so do the edit lists of MP4."""


def part_suffix(target: Path) -> str:
    """The container of the parts: the film's own where its timestamps are finer than Matroska's."""
    return target.suffix.lower() if target.suffix.lower() in _MOV else ".mkv"


def film_zero(film: Film) -> int:
    """The source's time that is 0 in the film, in nanoseconds: that of its file, of a part its first frame's."""
    if film.is_cut:
        return film.source.timestamps[film.frames.start]
    return _start_time(_described(film))


def part_zero(film: Film, target: Path, first: int, zero: int) -> int:
    """The source's time that is 0 in the part that begins with frame ``first``, in nanoseconds.

    Where timestamps are rounded to milliseconds, they are rounded as those of the whole film.
    """
    return film.source.timestamps[first] if part_suffix(target) in _MOV else zero


def packet_times(path: Path) -> list[int]:
    """When the frames of the video track of a file are shown, in nanoseconds and in order. Reads all of it.

    Raises:
        UserError: ffmpeg cannot read it.
    """
    listed = ["-v", "error", "-copyts", "-i", url(path), "-map", "0:v:0", "-c", "copy", "-f", "framecrc", "-"]
    status, output, said = run(listed)
    if status:
        raise UserError(complaint(said))
    lines = output.decode().splitlines()
    unit = next((Fraction(line.split(":")[1].strip()) for line in lines if line.startswith("#tb 0")), Fraction(1))
    stamps = (int(line.split(",")[2]) for line in lines if not line.startswith("#"))
    return sorted(round(stamp * unit * TIMESTAMPS_PER_SECOND) for stamp in stamps)


def join(film: Film, parts: Sequence[tuple[Path, int]], path: Path, target: Path, encoding: Encoding) -> None:
    """Write the parts as one film to ``path``, with the source's sound, chapters and metadata; no picture is changed.

    Args:
        film: what the parts are made of.
        parts: file and number of the first frame of each, in order, all in one folder.
        path: the file to write.
        target: what it will be called; for messages, and for what it can hold.
        encoding: its options for what is beside the picture.

    Raises:
        UserError: ffmpeg failed, or frames or timestamps are not those of the plan.
    """
    described = _described(film)
    zero = film_zero(film)
    stamps = [film.source.timestamps[first] - zero for _, first in parts]
    if part_suffix(target) not in _MOV:
        stamps = [_rounded(stamp, _MILLISECOND) for stamp in stamps]
    source = [*_cut_arguments(film, described), "-vn", "-i", url(film.source.path)] if described else []
    with scratch_folder(path.parent) as folder:
        listed = folder / "parts"
        listed.write_bytes(os.fsencode(_concatenation([part for part, _ in parts], stamps)))
        status, _, said = run(
            [
                *("-loglevel", "error", "-nostats", "-y", "-seek_timestamp", "1"),
                *("-itsoffset", f"{stamps[0] / TIMESTAMPS_PER_SECOND:.6f}"),
                *("-f", "concat", "-safe", "0", "-i", url(listed), *source),
                *("-map", "0:v", *(_beside_video(described, target) if described else ())),
                *(*encoding.joining(), "-c:v", "copy"),
                *(("-movflags", "+faststart") if target.suffix.lower() in _MOV else ()),
                url(path),
            ]
        )
    if status:
        raise UserError(f"{target}: {complaint(said).replace(url(path), str(target))}")
    _check_times(film, path, target)


def _concatenation(parts: Sequence[Path], starts: Sequence[int]) -> str:
    """What ffmpeg's concat demuxer reads: files, and how long each lasts, so that the next begins on time."""
    lines = ["ffconcat version 1.0"]
    for part, start, stop in zip(parts, starts, [*starts[1:], None], strict=True):
        quoted = str(part.absolute()).replace("'", "'\\''")
        lines.append(f"file 'file:{quoted}'")
        if stop is not None:
            microseconds = _rounded(stop, _MICROSECOND) - _rounded(start, _MICROSECOND)
            lines.append(f"duration {microseconds / TIMESTAMPS_PER_SECOND:.6f}")
    return "\n".join(lines) + "\n"


def _check_times(film: Film, path: Path, target: Path) -> None:
    """Compare the frames of the result, and when they are shown, with the plan."""
    found = packet_times(path)
    if len(found) != len(film.frames):
        raise UserError(
            f"{target}: {len(found)} frames came out of {len(film.frames)}; no option may add or drop frames"
        )
    if target.suffix.lower() not in _KEEP_TIMES:
        return
    planned = film.source.timestamps[film.frames.start : film.frames.stop]
    worst = max(abs((now - found[0]) - (then - planned[0])) for now, then in zip(found, planned, strict=True))
    if worst > _MILLISECOND:
        raise UserError(f"{target}: frames are shown up to {worst / 1e6:.1f} ms from where they are in the source")


def _rounded(nanoseconds: int, unit: int) -> int:
    """To the nearest multiple, halves up as ffmpeg rounds."""
    return (nanoseconds + unit // 2) // unit * unit


def _described(film: Film) -> str:
    """What ffmpeg says of the source; nothing of a folder of pictures."""
    return "" if film.source.path.is_dir() else describe(film.source.path)


def _beside_video(described: str, target: Path) -> list[str]:
    """What is taken of the source, the second input, besides the picture."""
    codecs = set(re.findall(r"Stream #.*Audio: (\w+)", described))
    fits = target.suffix.lower() != ".webm" or codecs <= {"opus", "vorbis"}
    return ["-map", "1:a?", "-c:a", "copy" if fits else "libopus", "-map_metadata", "1", "-map_chapters", "1"]


def _start_time(described: str) -> int:
    """Nanoseconds that ffmpeg takes off every timestamp of a file when it reads it."""
    start = re.search(r"Duration: .*, start: (-?\d+\.\d+)", described)
    return int(Fraction(start[1]) * TIMESTAMPS_PER_SECOND) if start else 0


def _cut_arguments(film: Film, described: str) -> list[str]:
    """Input options for the part of the source that the film is made of."""
    if not film.is_cut:
        return []
    stamps, frames = film.source.timestamps, film.frames
    begin, length = stamps[frames.start] - _start_time(described), stamps[frames.stop] - stamps[frames.start]
    return ["-ss", f"{begin / TIMESTAMPS_PER_SECOND:.6f}", "-t", f"{length / TIMESTAMPS_PER_SECOND:.6f}"]
