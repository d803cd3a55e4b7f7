"""Open a video file: its frames as RGB, when each is shown, and what a faithful copy must say about them."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import platformdirs
import vapoursynth as vs

from vsvsr.errors import UserError
from vsvsr.video.matroska import TIMESTAMPS_PER_SECOND, Colour

_UNSPECIFIED = 2  # in ITU-T H.273
_BT709 = 1
_BT601 = 6
_NO_TIMESTAMP = -(1 << 63)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A video file opened for reading.

    Attributes:
        clip: the decoded frames in RGBS.
        file_format: what the frames were decoded as; the output returns to it, in 8 or 10 bits.
        colour: tags of the file, the matrix never unspecified.
        sample_aspect_ratio: width over height of one sample.
        timestamps: when each frame is shown, in nanoseconds, and one entry more: when the last one ends.
        time_base: unit of the file's own timestamps, in seconds.
    """

    clip: vs.VideoNode
    file_format: vs.VideoFormat
    colour: Colour
    sample_aspect_ratio: Fraction
    timestamps: list[int]
    time_base: Fraction


class _Progress(logging.Handler):
    """Hears BestSource's messages through VapourSynth's log: indexing progress, and one needless warning."""

    def __init__(self, report: Callable[[int], None]) -> None:
        super().__init__()
        self.report = report

    def emit(self, record: logging.LogRecord) -> None:
        percent = re.search(r"index progress (\d+)%", record.getMessage())
        if percent:
            self.report(int(percent[1]))


def open_video(path: Path, on_index: Callable[[int], None]) -> Source:
    """Open ``path`` with BestSource.

    The first opening of a file decodes it once to index it; ``on_index`` hears how far that is, in percent.
    Untagged YUV is taken as BT.709 when it is wider than 1024 or higher than 576, else as BT.601, as players do.

    Raises:
        UserError: BestSource is missing, the file holds no video that it can read, or the video is interlaced.
    """
    if not hasattr(vs.core, "bs"):
        raise UserError('the source filter BestSource is missing; run: pip install "vsvsr[cli]"')
    decoded, stamps, time_base = _decode(path, on_index)
    props = decoded.get_frame(0).props
    if props.get("_FieldBased", 0):
        raise UserError(f"{path} is interlaced; deinterlace it first: ffmpeg -i {path} -vf bwdif DEINTERLACED.mkv")
    colour = _colour(decoded, props)
    return Source(
        clip=_to_rgb(decoded, colour),
        file_format=decoded.format,
        colour=colour,
        sample_aspect_ratio=Fraction(props.get("_SARNum", 1) or 1, props.get("_SARDen", 1) or 1),
        timestamps=_timestamps(stamps, time_base, decoded.fps, decoded.num_frames),
        time_base=time_base,
    )


def _decode(path: Path, on_index: Callable[[int], None]) -> tuple[vs.VideoNode, list[int], Fraction]:
    """The clip as it is in the file, the timestamps of its frames, and their unit in seconds."""
    log = logging.getLogger("vapoursynth")
    handler, level, propagate = _Progress(on_index), log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        index = platformdirs.user_cache_path("vsvsr", appauthor=False) / "index"
        opened = vs.core.bs.VideoSource(str(path), cachepath=str(index), exporttimestamps=True, showprogress=True)
    except vs.Error as error:
        reason = str(error).removeprefix("VideoSource: ").splitlines()[0]
        raise UserError(f"{path} holds no video that can be read: {reason}") from None
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate
    stamps = opened["timestamps"]
    if isinstance(stamps, int):  # a map with one value in it comes as that value
        stamps = [stamps]
    return opened["clip"], stamps, Fraction(opened["timebasenum"], opened["timebaseden"])


def _timestamps(stamps: list[int], time_base: Fraction, rate: Fraction, count: int) -> list[int]:
    """Nanoseconds of every frame and of the end; by the frame rate where the file has no usable timestamps.

    The last frame lasts as long as the one before it, a single frame as long as the frame rate says.
    """
    unit = time_base * TIMESTAMPS_PER_SECOND
    if _NO_TIMESTAMP in stamps or any(after <= before for before, after in pairwise(stamps)):
        return [round(n / rate * TIMESTAMPS_PER_SECOND) for n in range(count + 1)]
    last = (stamps[-1] - stamps[-2]) * unit if count > 1 else TIMESTAMPS_PER_SECOND / rate
    return [*(round(stamp * unit) for stamp in stamps), round(stamps[-1] * unit + last)]


def _colour(clip: vs.VideoNode, props: "vs.FrameProps") -> Colour:
    matrix = props.get("_Matrix", _UNSPECIFIED)
    if clip.format.color_family == vs.RGB:
        matrix = _BT709
    elif matrix == _UNSPECIFIED:
        matrix = _BT709 if clip.width > 1024 or clip.height > 576 else _BT601
    return Colour(
        matrix=matrix,
        transfer=props.get("_Transfer", _UNSPECIFIED),
        primaries=props.get("_Primaries", _UNSPECIFIED),
        full_range=clip.format.color_family != vs.RGB and props.get("_Range", 0) == 1,
        chroma_location=props.get("_ChromaLocation"),
    )


def _to_rgb(clip: vs.VideoNode, colour: Colour) -> vs.VideoNode:
    if clip.format.color_family == vs.RGB:
        return clip.resize.Bicubic(format=vs.RGBS)
    return clip.resize.Bicubic(format=vs.RGBS, matrix_in=colour.matrix)


def from_rgb(clip: vs.VideoNode, source: Source) -> vs.VideoNode:
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
    return clip.resize.Bicubic(
        format=target.id,
        matrix=source.colour.matrix,
        range_s="full" if source.colour.full_range else "limited",
        chromaloc=source.colour.chroma_location if subsampling != (0, 0) else None,
    )
