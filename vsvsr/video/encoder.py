"""Encode frames with ffmpeg."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import IO

import vapoursynth as vs

from vsvsr.errors import UserError
from vsvsr.files import end, undone
from vsvsr.video import matroska
from vsvsr.video.ffmpeg import describe, find_ffmpeg, url
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
    # A palette for each frame: one for all would need all frames at once.
    "gif": ("-vf", "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1"),
    "libwebp": ("-lossless", "1"),
    "mjpeg": ("-q:v", "2"),
}


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How the video is compressed.

    Attributes:
        encoder: one of ``ffmpeg -encoders``; None chooses one by the container, libx264 in most.
        crf: constant quality of the encoders that have it (libx264, libx265, libsvtav1, ...), lower is better.
        options: further ffmpeg output options without the leading hyphen, e.g. ``("preset", "slow")``.
    """

    encoder: str | None = None
    crf: int = 18
    options: tuple[tuple[str, str], ...] = ()

    def arguments(self, target: Path) -> list[str]:
        encoder = self.encoder or _ENCODERS.get(target.suffix.lower(), "libx264")
        usual = _OPTIONS.get(encoder, ("-crf", str(self.crf)) if encoder.startswith("lib") else ())
        return ["-c:v", encoder, *usual, *(word for key, value in self.options for word in (f"-{key}", value))]


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
    clip: vs.VideoNode, source: Video, path: Path, target: Path, *, first: int, encoding: Encoding
) -> Iterator[Callable[[vs.VideoFrame], None]]:
    """Give a function that takes the frames of ``clip``, one after the other; the file is complete at the end.

    Frames, audio streams (copied, or as Opus where the container demands it), chapters and metadata go through ffmpeg.
    However the body is left before the last frame, ffmpeg is stopped.

    Args:
        clip: integer samples, as many frames as follow ``first`` or fewer.
        source: for timestamps, tags, audio, chapters and metadata.
        path: the file to write, or the pattern of the names of pictures, numbered from ``first`` on.
        target: what it will be called; for messages.
        first: frame of the source that the clip begins with. If it is not 0, or the clip is shorter than the source,
            time begins at 0 there and the audio is cut.

    Raises:
        UserError: ffmpeg failed; the message has its first complaint.
    """
    last = first + clip.num_frames
    cut = clip.num_frames != source.clip.num_frames
    # A folder of pictures and a picture have nothing else, and GIF can hold nothing else.
    described = "" if source.path.is_dir() or wants_rgb(target) else describe(source.path)
    start = _start_time(described)
    zero = source.timestamps[first] if cut else start
    part = [*(_cut_arguments(start, zero, source.timestamps[last]) if cut else ()), "-vn", "-i", url(source.path)]
    command = [
        *(find_ffmpeg(), "-hide_banner", "-loglevel", "error", "-nostats", "-y"),
        # Timestamps of the pipe are final: no shift to 0. One frame suffices to know the stream.
        *("-seek_timestamp", "1", "-probesize", "32", "-f", "matroska", "-i", "pipe:0"),
        *(part if described else ()),
        *("-map", "0:v", *(_beside_video(described, target) if described else ()), "-fps_mode", "passthrough"),
        *("-enc_time_base", f"{source.time_base.numerator}:{source.time_base.denominator}"),
        *encoding.arguments(target),
        *(("-movflags", "+faststart") if target.suffix.lower() in (".mp4", ".m4v", ".mov") else ()),
        *_muxer(path, first),
    ]
    with tempfile.TemporaryFile() as complaints:

        def begin() -> subprocess.Popen[bytes]:
            # A session of its own keeps Ctrl-C from reaching ffmpeg, which would finish the half file.
            return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=complaints, start_new_session=True)

        with undone(begin, end) as process:
            assert process.stdin is not None
            pipe = process.stdin
            timestamps = iter(zip(source.timestamps[first:last], source.timestamps[first + 1 :], strict=False))

            def write(frame: vs.VideoFrame) -> None:
                now, after = next(timestamps)
                planes = list(frame.readchunks())
                if frame.format.color_family == vs.RGB:
                    planes = [planes[1], planes[2], planes[0]]
                for piece in matroska.frame(now - zero, after - now, planes, sum(plane.nbytes for plane in planes)):
                    pipe.write(piece)

            try:
                pipe.write(matroska.header(_track(clip, source)))
                yield write
                pipe.close()
                failed = process.wait() != 0
            except BrokenPipeError:
                process.wait()
                failed = True
            finally:
                process.kill()  # before the pipe is closed: ffmpeg would finish the file
                with suppress(BrokenPipeError):
                    pipe.close()
            if failed:
                raise UserError(f"{target}: {_complaint(complaints).replace(url(path), str(target))}")


def _beside_video(described: str, target: Path) -> list[str]:
    """What is taken of the source, the second input, besides the picture."""
    codecs = set(re.findall(r"Stream #.*Audio: (\w+)", described))
    fits = target.suffix.lower() != ".webm" or codecs <= {"opus", "vorbis"}
    return ["-map", "1:a?", "-c:a", "copy" if fits else "libopus", "-map_metadata", "1", "-map_chapters", "1"]


def _muxer(path: Path, first: int) -> list[str]:
    if is_numbered(path):
        return ["-f", "image2", "-start_number", str(first), url(f"{str(path.parent).replace('%', '%%')}/{path.name}")]
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


def _start_time(described: str) -> int:
    """Nanoseconds that ffmpeg takes off every timestamp of a file when it reads it."""
    start = re.search(r"Duration: .*, start: (-?\d+\.\d+)", described)
    return int(Fraction(start[1]) * matroska.TIMESTAMPS_PER_SECOND) if start else 0


def _cut_arguments(start: int, begin: int, end_: int) -> list[str]:
    """Input options for the part from ``begin`` to ``end_`` of a file that starts at ``start``, in nanoseconds."""
    seconds = (float((begin - start) * _NANOSECOND), float((end_ - begin) * _NANOSECOND))
    return ["-ss", f"{seconds[0]:.6f}", "-t", f"{seconds[1]:.6f}"]


def _complaint(stream: IO[bytes]) -> str:
    stream.seek(0)
    lines = stream.read().decode(errors="replace").splitlines()
    return re.sub(r"^(\[[^]]*\] )+", "", lines[0]) if lines else "ffmpeg failed without a word"
