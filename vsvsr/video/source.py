"""Open a video: its frames as RGB, when each is shown, and what a faithful copy must say about them."""

import glob
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import platformdirs
import vapoursynth as vs

from vsvsr.errors import UserError
from vsvsr.video.colour import colour_of, from_float_rgb, to_float_rgb
from vsvsr.video.matroska import TIMESTAMPS_PER_SECOND, Colour, Mastering

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

_NO_TIMESTAMP = -(1 << 63)


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video opened for reading.

    Attributes:
        path: the file, or the folder of an image sequence.
        clip: the decoded frames in RGBS, turned as the file says.
        file_format: what the frames were decoded as; the output returns to it, in 8 or 10 bits.
        colour: tags of the file, the matrix never unspecified.
        sample_aspect_ratio: width over height of one sample of ``clip``.
        timestamps: when each frame is shown, in nanoseconds, and one entry more: when the last one ends.
        time_base: unit of the file's own timestamps, in seconds.
        mastering: of HDR, as the first frame says.
        light_level: likewise: the brightest pixel and the brightest mean of a frame, in cd/m2.
        left_out: what of its frames nothing is made of, in words.
    """

    path: Path
    clip: vs.VideoNode
    file_format: vs.VideoFormat
    colour: Colour
    sample_aspect_ratio: Fraction
    timestamps: list[int]
    time_base: Fraction
    mastering: Mastering | None
    light_level: tuple[int, int] | None
    left_out: tuple[str, ...]


class Pictures:
    """The frames of a clip in 8 bits, each decoded when it is asked for: arrays ``(h, w, 3)`` of uint8."""

    def __init__(self, clip: vs.VideoNode) -> None:
        self._clip = clip.resize.Point(format=vs.RGB24)
        self.size = (clip.height, clip.width)
        self.frames_per_second = float(clip.fps)
        """0 where frames last differently long."""

    def __len__(self) -> int:
        return int(self._clip.num_frames)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> "Pictures": ...

    def __getitem__(self, index: int | slice) -> "np.ndarray | Pictures":
        if isinstance(index, slice):
            return Pictures(self._clip[index])
        with one_line_errors(), self._clip[index].get_frame(0) as frame:
            return _to_array(frame)

    def __iter__(self) -> Iterator[np.ndarray]:
        with one_line_errors():
            for frame in self._clip.frames(close=True):
                yield _to_array(frame)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """VapourSynth's errors as `UserError`: their first line, or, of an exception in a script, the last."""
    try:
        yield
    except vs.Error as error:
        lines = str(error).strip().splitlines()
        raise UserError(lines[-1 if lines[0].startswith("Traceback") else 0]) from None


def _to_array(frame: vs.VideoFrame) -> np.ndarray:
    return np.stack([np.asarray(frame[plane]) for plane in range(3)], axis=-1)


class _Progress(logging.Handler):
    """Reads BestSource's indexing progress from VapourSynth's log."""

    def __init__(self, report: Callable[[int], None]) -> None:
        super().__init__()
        self.report = report

    def emit(self, record: logging.LogRecord) -> None:
        percent = re.search(r"index progress (\d+)%", record.getMessage())
        if percent:
            self.report(int(percent[1]))


def open_video(
    path: Path, on_index: Callable[[int], None] = lambda percent: None, *, rate: Fraction | None = None
) -> Video:
    """Open a video file, or a folder of numbered pictures, with BestSource.

    The first opening of a file decodes it once to index it.
    Untagged YUV is taken as BT.709 when it is wider than 1024 or higher than 576, else as BT.601, as players do.

    Args:
        path: that file or folder.
        on_index: hears how far the index is, in percent.
        rate: frames a second of a folder of pictures, otherwise 25.

    Raises:
        UserError: BestSource is missing, ``path`` holds no video that it can read, or the video is interlaced, changes
            its size, or is to be shown turned by anything but right angles, or ``rate`` is for a file.
    """
    if not hasattr(vs.core, "bs"):
        raise UserError('the source filter BestSource is missing; run: pip install "vsvsr[cli]"')
    decoded, given, time_base = _decode(path, on_index, rate)
    stamps = _apart(given, time_base * decoded.fps)
    if decoded.format is None or decoded.width == 0:
        raise UserError(f"{path} changes its size or format on the way; it must have one")
    with one_line_errors():
        props = dict(decoded.get_frame(0).props)
    if props.get("_FieldBased", 0):
        raise UserError(f"{path} is interlaced; deinterlace it first: ffmpeg -i {path} -vf bwdif DEINTERLACED.mkv")
    colour = colour_of(decoded, props)
    if decoded.format.color_family == vs.RGB:
        colour = replace(colour, full_range=False)  # it is written as YUV
    rotation = int(props.get("Rotation", 0))
    if rotation % 90:
        raise UserError(f"{path} is to be shown turned by {rotation} degrees; allowed are multiples of 90")
    aspect = Fraction(props.get("_SARNum", 1) or 1, props.get("_SARDen", 1) or 1)
    return Video(
        path=path,
        # Turned only now: the chroma siting is that of the frame as it is in the file.
        clip=_turn(to_float_rgb(decoded, colour), rotation, flip=bool(props.get("FlipVertical", 0))),
        file_format=decoded.format,
        colour=colour,
        sample_aspect_ratio=aspect if rotation % 180 == 0 else 1 / aspect,
        timestamps=_timestamps(stamps, time_base, decoded.fps, decoded.num_frames),
        time_base=time_base,
        mastering=_mastering(props),
        light_level=_light_level(props),
        left_out=(*_left_out(decoded.format, props), *_going_back(stamps)),
    )


def image_sequence(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their numbers, as in ``000/00000000.png``, ``000/00000001.png``, ...

    Raises:
        UserError: there are no pictures, they are not named alike but for one number, or a number is missing.
    """
    pictures = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    found = sorted(path for path in pictures if not path.name.startswith("."))
    if not found:
        raise UserError(f"{folder} holds no pictures")
    names = [_NUMBERED.fullmatch(path.name) for path in found]
    matches = [match for match in names if match is not None]
    if len(matches) < len(found) or len({(match[1], match[3]) for match in matches}) > 1:
        raise UserError(
            f"{folder}: pictures of one sequence are named alike but for their number, as 0001.png, 0002.png"
        )
    by_number = {int(match[2]): path for match, path in zip(matches, found, strict=True)}
    if len(by_number) < len(found):
        twice = next(path for path in found if path not in by_number.values())
        raise UserError(f"{folder}: the number of {twice.name} occurs twice")
    numbers = sorted(by_number)
    missing = next((after - 1 for before, after in pairwise(numbers) if after != before + 1), None)
    if missing is not None:
        raise UserError(f"{folder}: picture {missing} of the sequence is missing")
    return [by_number[number] for number in numbers]


_NUMBERED = re.compile(r"(.*?)(\d+)(\.[^.]*)")


def _pattern(first: Path) -> tuple[bytes, int]:
    """How ffmpeg names the sequence that begins with ``first``, and the number of that picture."""
    match = _NUMBERED.fullmatch(first.name)
    assert match is not None
    width = len(match[2]) if match[2].startswith("0") else 1
    folder, before, after = (str(text).replace("%", "%%") for text in (first.parent.absolute(), match[1], match[3]))
    return os.fsencode(f"{folder}/{before}%0{width}d{after}"), int(match[2])


def _decode(
    path: Path, on_index: Callable[[int], None], rate: Fraction | None
) -> tuple[vs.VideoNode, list[int], Fraction]:
    """The clip as it is in the file, the timestamps of its frames, and their unit in seconds."""
    pictures = image_sequence(path) if path.is_dir() else None
    if pictures is None and rate is not None:
        raise UserError(f"{path} says itself when its frames are shown; frames a second are for folders of pictures")
    log = logging.getLogger("vapoursynth")
    handler, level, propagate = _Progress(on_index), log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    where: dict[str, int | bytes]
    try:
        if pictures is not None:
            name, number = _pattern(pictures[0])
            where = {"start_number": number, "cachemode": 0}
        else:
            # An absolute name: of a relative one with a colon ffmpeg would take the beginning for a protocol.
            name = os.fsencode(path.absolute())
            where = {"cachepath": os.fsencode(_fresh_index(path.absolute()))}
        opened = vs.core.bs.VideoSource(name, exporttimestamps=True, showprogress=True, apply_rotation=False, **where)
    except vs.Error as error:
        reason = str(error).removeprefix("VideoSource: ").splitlines()[0]
        raise UserError(f"{path} holds no video that can be read: {reason}") from None
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate
    clip = opened["clip"]
    if pictures is not None and clip.num_frames != len(pictures):
        raise UserError(f"{path}: {clip.num_frames} of its {len(pictures)} pictures can be read")
    if rate is not None:
        timed = clip.std.AssumeFPS(fpsnum=rate.numerator, fpsden=rate.denominator)
        return timed, list(range(timed.num_frames)), 1 / rate
    stamps = opened["timestamps"]
    if isinstance(stamps, int):  # a map with one value in it comes as that value
        stamps = [stamps]
    return clip, stamps, Fraction(opened["timebasenum"], opened["timebaseden"])


def _fresh_index(path: Path) -> Path:
    """The folder of BestSource's indices, without one that is older than the file ``path``.

    BestSource tells files apart by name and size; one that was made again can have both.
    """
    folder = platformdirs.user_cache_path("vsvsr", appauthor=False) / "index"
    # As BestSource names it.
    kept = folder / re.sub(r'[?*<>|"]', "_", str(path.relative_to(path.anchor)).replace(":", "/"))
    with suppress(OSError):
        state = path.stat()
        now = time.time_ns()  # clocks of cameras run ahead
        made = max((at for at in (state.st_mtime_ns, state.st_ctime_ns) if at <= now), default=0)
        for index in kept.parent.glob(f"{glob.escape(kept.name)}.*.bsindex"):
            if index.stat().st_mtime_ns < made:
                index.unlink()
    return folder


def _timestamps(stamps: list[int], time_base: Fraction, rate: Fraction, count: int) -> list[int]:
    """Nanoseconds of every frame and of the end; by the frame rate where the file has no usable timestamps.

    The last frame lasts as long as the one before it, a single frame as long as the frame rate says.
    """
    unit = time_base * TIMESTAMPS_PER_SECOND
    if _NO_TIMESTAMP in stamps or any(after <= before for before, after in pairwise(stamps)):
        return [round(n / rate * TIMESTAMPS_PER_SECOND) for n in range(count + 1)]
    last = (stamps[-1] - stamps[-2]) * unit if count > 1 else TIMESTAMPS_PER_SECOND / rate
    return [*(round(stamp * unit) for stamp in stamps), round(stamps[-1] * unit + last)]


def _apart(stamps: list[int], frames_per_unit: Fraction) -> list[int]:
    """Timestamps that some frames share, one unit apart, if none is moved by a frame's length."""
    apart = list(accumulate(stamps, lambda before, stamp: max(before + 1, stamp)))
    late = max(now - stamp for now, stamp in zip(apart, stamps, strict=True))
    return apart if late * frames_per_unit < 1 else stamps


def _going_back(stamps: list[int]) -> list[str]:
    """What to say of timestamps that are not used for that reason."""
    frame = next((n for n, (before, after) in enumerate(pairwise(stamps), start=1) if after <= before), None)
    if frame is None or _NO_TIMESTAMP in stamps:
        return []
    return [f"its timestamps, which go back at frame {frame}: frames follow evenly, and sound may not fit"]


def _mastering(props: Mapping[str, Any]) -> Mastering | None:
    names = ("MasteringDisplayPrimariesX", "MasteringDisplayPrimariesY", "MasteringDisplayMaxLuminance")
    if not all(name in props for name in names):
        return None
    xs = [*props["MasteringDisplayPrimariesX"], props["MasteringDisplayWhitePointX"]]
    ys = [*props["MasteringDisplayPrimariesY"], props["MasteringDisplayWhitePointY"]]
    luminance = (props["MasteringDisplayMinLuminance"], props["MasteringDisplayMaxLuminance"])
    return Mastering(chromaticities=tuple(zip(xs, ys, strict=True)), luminance=luminance)


def _light_level(props: Mapping[str, Any]) -> tuple[int, int] | None:
    if "ContentLightLevelMax" not in props:
        return None
    return props["ContentLightLevelMax"], props["ContentLightLevelAverage"]


def _left_out(file_format: vs.VideoFormat, props: Mapping[str, Any]) -> tuple[str, ...]:
    dynamic = {"DolbyVisionRPU": "Dolby Vision", "HDR10Plus": "HDR10+"}
    found = [f"{name} metadata" for prop, name in dynamic.items() if prop in props]
    if "_Alpha" in props:
        found.append("transparency")
    if file_format.sample_type == vs.INTEGER and file_format.bits_per_sample > 10:
        found.append(f"bits 11 to {file_format.bits_per_sample} of films")
    return tuple(found)


def _turn(clip: vs.VideoNode, degrees: int, *, flip: bool) -> vs.VideoNode:
    """The picture upside down if ``flip``, then turned clockwise."""
    if flip:
        clip = clip.std.FlipVertical()
    if degrees % 180:
        clip = clip.std.Transpose().std.FlipHorizontal()
    return clip.std.Turn180() if degrees % 360 >= 180 else clip


def to_integer_rgb(clip: vs.VideoNode, source: Video) -> vs.VideoNode:
    """RGB in 8 bits or, if the source had more, in 16."""
    return clip.resize.Point(format=vs.RGB24 if source.file_format.bits_per_sample == 8 else vs.RGB48)


def from_rgb(clip: vs.VideoNode, source: Video) -> vs.VideoNode:
    """Back to the file's colour family, subsampling, matrix and range, in 8 bits or, if it had more, in 10.

    RGB becomes 4:2:0 BT.709, which every player shows; subsamplings that encoders do not know become their neighbour.
    """
    file_format = source.file_format
    bits = 8 if file_format.bits_per_sample == 8 else 10
    if file_format.color_family == vs.GRAY:
        family, subsampling = vs.GRAY, (0, 0)
    elif file_format.color_family == vs.RGB:
        family, subsampling = vs.YUV, (1, 1)
    else:
        family = vs.YUV
        subsampling = {0: (0, 0), 1: (1, min(file_format.subsampling_h, 1))}[min(file_format.subsampling_w, 1)]
    target = vs.core.query_video_format(family, vs.INTEGER, bits, *subsampling)
    return from_float_rgb(clip, target, source.colour)
