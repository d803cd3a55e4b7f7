"""Encode frames with ffmpeg: a part of a film, or pictures."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import vapoursynth as vs

from vsvsr.errors import UserError
from vsvsr.files import end, undone
from vsvsr.video import matroska
from vsvsr.video.ffmpeg import find_ffmpeg, url
from vsvsr.video.source import IMAGE_SUFFIXES, Video

_NANOSECOND = Fraction(1, matroska.TIMESTAMPS_PER_SECOND)

_ENCODERS = {
    ".bmp": "bmp",
    ".gif": "gif",
    ".jpeg": "mjpeg",
    ".jpg": "mjpeg",
    ".png": "png",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".webm": "libvpx-vp9",
    ".webp": "libwebp",
}
"""Encoders of files that H.264 cannot be in."""

_OPTIONS = {
    # Every frame by itself, in slices with checksums: what archives ask for.
    "ffv1": ("-level", "3", "-g", "1", "-slicecrc", "1"),
    # A palette for each frame: one for all would need all frames at once.
    "gif": ("-vf", "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1"),
    "libwebp": ("-lossless", "1"),
    "mjpeg": ("-q:v", "2"),
}

_HARDWARE = {
    "nvenc": ("-rc", "vbr", "-cq", "{crf}", "-b:v", "0", "-preset", "p6", "-tune", "hq"),
    "qsv": ("-global_quality", "{crf}", "-preset", "slower"),
    "amf": ("-rc", "cqp", "-qp_i", "{crf}", "-qp_p", "{crf}", "-quality", "quality"),
    "vaapi": ("-vaapi_device", "/dev/dri/renderD128", "-vf", "format=nv12|p010,hwupload", "-qp", "{crf}"),
    "videotoolbox": ("-q:v", "{quality}"),
}
"""Constant quality of hardware encoders, by what follows the last ``_`` in their names."""

_BESIDE = frozenset({"acodec", "af", "ac", "ar", "scodec", "metadata", "disposition", "movflags", "f"})
_BESIDE |= {"map_metadata", "map_chapters", "shortest", "an", "sn"}
"""Options of ffmpeg that are about sound, subtitles or the file."""

_FLAGS = {"shortest"}
"""Options of ffmpeg that have no value."""

_WITHOUT = {"an": "Audio", "sn": "Subtitle"}
"""Options that leave out tracks of a kind."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How the video is compressed.

    Attributes:
        encoder: one of ``ffmpeg -encoders``; None chooses one by the container, libx264 in most.
        crf: constant quality of the encoders that have it (libx264, libsvtav1, hevc_nvenc, ...), lower is better.
        options: further ffmpeg output options without the leading hyphen, e.g. ``("preset", "slow")``.
    """

    encoder: str | None = None
    crf: int = 18
    options: tuple[tuple[str, str], ...] = ()

    def arguments(self, target: Path) -> list[str]:
        """Output options of ffmpeg for the picture."""
        encoder = self.encoder or _ENCODERS.get(target.suffix.lower(), "libx264")
        usual = _OPTIONS.get(encoder, ("-crf", str(self.crf)) if encoder.startswith("lib") else self._hardware(encoder))
        return ["-c:v", encoder, *usual, *_words(option for option in self.options if not _beside(option[0]))]

    def _hardware(self, encoder: str) -> list[str]:
        """Options for constant quality of an encoder in hardware; none for others."""
        options = _HARDWARE.get(encoder.rpartition("_")[2], ())
        return [option.format(crf=self.crf, quality=100 - 2 * min(self.crf, 49)) for option in options]

    def joining(self) -> list[str]:
        """Those of ``options`` that are about sound, subtitles or the file: for when a film is joined."""
        return _words(option for option in self.options if _beside(option[0]) and option[0] not in _WITHOUT)

    @property
    def without(self) -> set[str]:
        """Kinds of tracks of the source, as ffmpeg names them, that ``options`` leave out."""
        return {_WITHOUT[name] for name, _ in self.options if name in _WITHOUT}


class _StoppedReadingError(Exception):
    """ffmpeg takes no more frames."""


def _beside(key: str) -> bool:
    """Whether an option of ffmpeg is about something else than the picture."""
    name, _, specifier = key.partition(":")
    return specifier[:1] in ("a", "s", "t", "d", "g") or name in _BESIDE


def _words(options: Iterable[tuple[str, str]]) -> list[str]:
    return [word for key, value in options for word in ((f"-{key}",) if key in _FLAGS else (f"-{key}", value))]


def is_numbered(target: Path) -> bool:
    """Whether the name stands for many pictures: ``frame_%04d.png``."""
    return is_image(target) and re.search(r"%\d*d", target.name) is not None


def is_image(target: Path) -> bool:
    return target.suffix.lower() in IMAGE_SUFFIXES


def wants_rgb(target: Path) -> bool:
    """Whether what the file holds is best made of RGB."""
    return is_image(target) or target.suffix.lower() == ".gif"


@contextmanager
def encode(
    clip: vs.VideoNode, source: Video, path: Path, target: Path, *, first: int, zero: int, encoding: Encoding
) -> Iterator[Callable[[vs.VideoFrame], list[memoryview]]]:
    """Give a function that takes the frames of ``clip``, one after the other; the file is complete at the end.

    The file holds the picture alone. The function returns the planes that it wrote. However the body is left before the
    last frame, ffmpeg is stopped.

    Args:
        clip: integer samples, as many frames as follow ``first`` or fewer.
        source: for timestamps and tags.
        path: the file to write, or the pattern of the names of pictures, numbered from ``first`` on.
        target: what the user calls it; for messages, and for the encoder that fits.
        first: frame of the source that the clip begins with.
        zero: the source's time, in nanoseconds, that is 0 in the file.
        encoding: how it is compressed.

    Raises:
        UserError: ffmpeg failed; the message has its first complaint.
    """
    last = first + clip.num_frames
    command = [
        *(find_ffmpeg(), "-hide_banner", "-loglevel", "error", "-nostats", "-y"),
        # Timestamps of the pipe are final: no shift to 0. One frame suffices to know the stream.
        *("-seek_timestamp", "1", "-probesize", "32", "-f", "matroska", "-i", "pipe:0"),
        *("-map", "0:v", "-fps_mode", "passthrough"),
        *("-enc_time_base", f"{source.time_base.numerator}:{source.time_base.denominator}"),
        *encoding.arguments(target),
        *_muxer(path, first),
    ]
    with tempfile.TemporaryFile() as complaints:

        def begin() -> subprocess.Popen[bytes]:
            # Ctrl-C must not reach ffmpeg, which would finish the half file: hence a session, on Windows a group.
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stderr=complaints,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )

        with undone(begin, end) as process:
            assert process.stdin is not None
            pipe = process.stdin
            timestamps = iter(zip(source.timestamps[first:last], source.timestamps[first + 1 :], strict=False))

            def feed(piece: bytes | memoryview) -> None:
                try:
                    pipe.write(piece)
                except OSError as error:  # EPIPE, on Windows EINVAL
                    raise _StoppedReadingError from error

            def write(frame: vs.VideoFrame) -> list[memoryview]:
                now, after = next(timestamps)
                planes = list(frame.readchunks())  # or their rows, where those are padded
                if frame.format.color_family == vs.RGB:
                    red = len(planes) // 3
                    planes = [*planes[red:], *planes[:red]]
                for piece in matroska.frame(now - zero, after - now, planes, sum(plane.nbytes for plane in planes)):
                    feed(piece)
                return planes

            try:
                feed(matroska.header(_track(clip, source)))
                yield write
                with suppress(OSError):  # ffmpeg's status says why
                    pipe.close()
                failed = process.wait() != 0
            except _StoppedReadingError:
                process.wait()
                failed = True
            finally:
                process.kill()  # before the pipe is closed: ffmpeg would finish the file
                with suppress(OSError):
                    pipe.close()
            if failed:
                complaints.seek(0)
                raise UserError(
                    f"{target}: {complaint(complaints.read(), process.returncode).replace(url(path), str(target))}"
                )


def _muxer(path: Path, first: int) -> list[str]:
    if is_numbered(path):
        before, number, after = re.split(r"(%\d*d)", path.name, maxsplit=1)
        folder, before, after = (text.replace("%", "%%") for text in (str(path.parent), before, after))
        return ["-f", "image2", "-start_number", str(first), url(f"{folder}/{before}{number}{after}")]
    return ["-f", "image2", "-update", "1", url(path)] if is_image(path) else [url(path)]


def _track(clip: vs.VideoNode, source: Video) -> matroska.VideoTrack:
    seconds = (source.timestamps[-1] - source.timestamps[0]) * _NANOSECOND
    rgb = clip.format.color_family == vs.RGB
    return matroska.VideoTrack(
        width=clip.width,
        height=clip.height,
        fourcc=_fourcc(clip.format),
        colour=replace(source.colour, matrix=0, full_range=True, chroma_location=None) if rgb else source.colour,
        sample_aspect_ratio=source.sample_aspect_ratio,
        frame_rate=source.clip.num_frames / seconds,
        mastering=None if rgb else source.mastering,
        light_level=None if rgb else source.light_level,
    )


def _fourcc(video_format: vs.VideoFormat) -> bytes:
    """As in ffmpeg's table of raw formats: ``Y3``, log2 of the subsamplings, bits; ``G3``: RGB; older names."""
    bits = video_format.bits_per_sample
    if video_format.color_family == vs.GRAY:
        return b"Y800" if bits == 8 else bytes((*b"Y1", 0, bits))
    if video_format.color_family == vs.RGB:
        return bytes((*b"G3", 0, bits))
    subsampling = (video_format.subsampling_w, video_format.subsampling_h)
    if bits == 8:
        return {(1, 1): b"I420", (1, 0): b"Y42B", (0, 0): b"444P"}[subsampling]
    return bytes((*b"Y3", {(1, 1): 11, (1, 0): 10, (0, 0): 0}[subsampling], bits))


def complaint(said: bytes | str, status: int) -> str:
    """The first thing that ffmpeg had to say, or, where it said nothing, how it ended."""
    lines = (said if isinstance(said, str) else said.decode(errors="replace")).splitlines()
    if lines:
        return re.sub(r"^(\[[^]]*\] )+", "", lines[0])
    return (
        f"ffmpeg was ended by signal {-status}"
        if status < 0
        else f"ffmpeg ended with exit code {status} and no message"
    )
