"""Parts of a film become one file: the picture as it is in them, and from the source what belongs to it."""

import os
import re
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from vsvsr.errors import UserError
from vsvsr.files import scratch_folder
from vsvsr.video.encoder import Encoding, complaint, encode
from vsvsr.video.ffmpeg import describe, run, url
from vsvsr.video.film import Film
from vsvsr.video.matroska import TIMESTAMPS_PER_SECOND
from vsvsr.video.tracks import MOV, Beside, beside, tracks_of

_BEGIN_LATE = (".ts", ".mts", ".m2ts")
_KEEP_TIMES = (*MOV, ".mkv", ".webm", *_BEGIN_LATE)
"""Containers in which every frame has a timestamp."""

# What is shown when the film begins stays, and none begins before: Matroska would shift the whole film.
_CUT_SUBTITLES = (
    *("-copypriorss:s", "1"),
    *("-bsf:s", r"noise=drop=lte(pts+duration\,0),setts=ts=max(TS\,0):duration=DURATION+min(PTS\,0)"),
)

_SHORT = 100
"""Characters of a name, its ending included, that a temporary file keeps."""

_MICROSECOND = TIMESTAMPS_PER_SECOND // 1_000_000
_MILLISECOND = TIMESTAMPS_PER_SECOND // 1000
"""Matroska counts milliseconds, and so do the edit lists of MP4."""


def part_suffix(target: Path) -> str:
    """The container of the parts: the film's own where its timestamps are finer than Matroska's."""
    return target.suffix.lower() if target.suffix.lower() in MOV else ".mkv"


def film_zero(film: Film) -> int:
    """The source's time that is 0 in the film, in nanoseconds: that of its file, of a part its first frame's."""
    if film.is_cut:
        return film.source.timestamps[film.frames.start]
    # ffmpeg rounds it to microseconds, maybe to after the first frame.
    return min(_start_time(_described(film)), film.source.timestamps[0])


def part_zero(film: Film, target: Path, first: int, zero: int) -> int:
    """The source's time that is 0 in the part that begins with frame ``first``, in nanoseconds.

    Where timestamps are rounded to milliseconds, they are rounded as those of the whole film.
    """
    return film.source.timestamps[first] if part_suffix(target) in MOV else zero


def packet_times(path: Path) -> list[int]:
    """When the frames of the video track of a file are shown, in nanoseconds and in order. Reads all of it.

    Raises:
        UserError: ffmpeg cannot read it.
    """
    listed = ["-v", "error", "-copyts", "-i", url(path), "-map", "0:v:0", "-c", "copy", "-f", "framecrc", "-"]
    status, output, said = run(listed)
    if status:
        raise UserError(complaint(said, status))
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
    carried = beside(described, target, without=encoding.without)
    zero = film_zero(film)
    stamps = [film.source.timestamps[first] - zero for _, first in parts]
    if part_suffix(target) not in MOV:
        stamps = [_rounded(stamp, _MILLISECOND) for stamp in stamps]
    source = [*_cut_arguments(film, described), "-i", url(film.source.path)] if described else []
    with scratch_folder(path.parent) as folder:
        covers = _covers(film, carried, folder, target)
        listed = folder / "parts"
        listed.write_bytes(os.fsencode(_concatenation([part for part, _ in parts], stamps)))
        status, _, said = run(
            [
                *("-loglevel", "error", "-nostats", "-y", "-seek_timestamp", "1"),
                *("-itsoffset", f"{stamps[0] / TIMESTAMPS_PER_SECOND:.6f}"),
                *("-f", "concat", "-safe", "0", "-i", url(listed), *source),
                *("-map", "0:v", "-c:0", "copy", *carried.maps(source=1, first=1), *carried.attached(covers)),
                *carried.marks(),
                *(_taken_from(1, encoding) if described else ()),
                # ffmpeg begins at a key frame of the picture, and would keep seconds of sound before the first frame.
                *(("-copypriorss:a", "0", *_CUT_SUBTITLES) if film.is_cut else ()),
                *(("-t", _seconds(film)) if film.is_cut else ()),  # for chapters
                *encoding.joining(),
                *_rate(film, target),
                *(("-movflags", "+faststart") if target.suffix.lower() in MOV else ()),
                url(path),
            ]
        )
    if status:
        raise UserError(f"{target}: {complaint(said, status).replace(url(path), str(target))}")
    _check_times(film, path, target)


def check_beside(film: Film, target: Path, encoding: Encoding, *, encodes: bool) -> Beside:
    """What of the source goes into the film besides the picture, after an attempt to put it into such a container.

    Args:
        film: what is to be written.
        target: what it will be called.
        encoding: of the picture.
        encodes: whether this process can encode: a frame is tried as well then.

    Raises:
        UserError: ffmpeg refuses it, which would otherwise show when all frames are made.
    """
    described = _described(film)
    carried = beside(described, target, without=encoding.without)
    with tempfile.TemporaryDirectory() as folder:
        picture = _black_frame(film, Path(folder), target, encoding) if encodes else []
        if not picture and not carried.tracks:
            return carried
        source = ["-i", url(film.source.path)] if described else []
        number = int(bool(picture))
        inputs, maps = [*picture, *source], ["-map", "0:v", "-c:0", "copy"] if picture else []
        maps += carried.maps(source=number, first=number)
        tried = Path(folder, "tried")
        tried.mkdir()
        path = url(tried / target.name[-_SHORT:])
        options = [*encoding.joining(), *_rate(film, target)]
        status, _, said = run(["-loglevel", "error", "-nostats", *inputs, *maps, "-t", "0.2", *options, path])
        if status:
            raise UserError(f"{target}: {complaint(said, status).replace(path, str(target))}")
        if target.suffix.lower() in _BEGIN_LATE:
            # MPEG-TS takes anything, as data that no player knows.
            held = tracks_of(describe(next(tried.iterdir())))
            wanted = ["Video"] * number + [track.kind for track, _ in carried.tracks]
            for track, kind in zip(held, wanted, strict=False):
                if track.kind == "Data" != kind:
                    what = {"Video": "the picture", "Audio": "the sound", "Subtitle": "the subtitles"}.get(kind, kind)
                    raise UserError(f"{target}: MPEG-TS cannot hold {what} in this codec; choose another container")
    return carried


def _black_frame(film: Film, folder: Path, target: Path, encoding: Encoding) -> list[str]:
    """A part of one frame in ``folder``, as an input of ffmpeg; none where an option of the user's drops the frame."""
    clip = film.clip.std.BlankClip(length=1)
    part, listed = folder / f"part{part_suffix(target)}", folder / "parts"
    with encode(clip, film.source, part, target, first=0, zero=film.source.timestamps[0], encoding=encoding) as write:
        write(clip.get_frame(0))
    if "Stream #0:0" not in describe(part):
        return []
    listed.write_bytes(os.fsencode(_concatenation([part], [0])))
    return ["-f", "concat", "-safe", "0", "-i", url(listed)]


def _covers(film: Film, carried: Beside, folder: Path, target: Path) -> list[Path]:
    """The pictures that are attached to the source, as files."""
    files = []
    for cover in carried.covers:
        file = folder / f"cover{cover.index}.{'jpg' if cover.codec == 'mjpeg' else cover.codec}"
        taken = ["-map", f"0:{cover.index}", "-c", "copy", "-f", "image2", "-update", "1", url(file)]
        status, _, said = run(["-loglevel", "error", "-i", url(film.source.path), *taken])
        if status:
            raise UserError(f"{target}: {complaint(said, status)}")
        files.append(file)
    return files


def keeps_hdr(film: Film, path: Path) -> bool:
    """Whether what the source says about the light of its display is in a file's first frame, if it says anything."""
    wanted = {
        "Mastering display metadata": film.source.mastering,
        "Content light level metadata": film.source.light_level,
    }
    if not any(wanted.values()):
        return True
    said = run(["-i", url(path), "-map", "0:v:0", "-frames:v", "1", "-vf", "showinfo", "-f", "null", "-"])[2]
    return all(name in said for name, value in wanted.items() if value)


def _rate(film: Film, target: Path) -> list[str]:
    """Output options for containers that know frames by their number: what they count would be milliseconds."""
    rate = film.source.clip.fps
    return ["-r", str(rate)] if rate and target.suffix.lower() not in _KEEP_TIMES else []


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
    # MPEG-TS begins late: how much later than planned is the muxer's choice, the same for sound and picture.
    begin = found[0] - planned[0] if target.suffix.lower() in _BEGIN_LATE else -film_zero(film)
    worst = max(abs(now - then - begin) for now, then in zip(found, planned, strict=True))
    if worst > _MILLISECOND:
        raise UserError(f"{target}: frames are shown up to {worst / 1e6:.1f} ms from where they are in the source")


def _rounded(nanoseconds: int, unit: int) -> int:
    """To the nearest multiple, halves up as ffmpeg rounds."""
    return (nanoseconds + unit // 2) // unit * unit


def _described(film: Film) -> str:
    """What ffmpeg says of the source; nothing of a folder of pictures."""
    return "" if film.source.path.is_dir() else describe(film.source.path)


def _start_time(described: str) -> int:
    """Nanoseconds that ffmpeg takes off every timestamp of a file when it reads it."""
    start = re.search(r"Duration: .*, start: (-?\d+\.\d+)", described)
    return int(Fraction(start[1]) * TIMESTAMPS_PER_SECOND) if start else 0


def _cut_arguments(film: Film, described: str) -> list[str]:
    """Input options for the part of the source that the film is made of."""
    if not film.is_cut:
        return []
    begin = film.source.timestamps[film.frames.start] - _start_time(described)
    return ["-ss", f"{begin / TIMESTAMPS_PER_SECOND:.6f}", "-t", _seconds(film)]


def _taken_from(source: int, encoding: Encoding) -> list[str]:
    """Output options that take what an input says of itself, unless options of the user's say otherwise."""
    own = {name for name, _ in encoding.options}
    return [word for name in ("map_metadata", "map_chapters") if name not in own for word in (f"-{name}", str(source))]


def _seconds(film: Film) -> str:
    """How long the film lasts."""
    stamps, frames = film.source.timestamps, film.frames
    return f"{(stamps[frames.stop] - stamps[frames.start]) / TIMESTAMPS_PER_SECOND:.6f}"
