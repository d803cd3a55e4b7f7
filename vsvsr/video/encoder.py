"""Encode frames with ffmpeg into a file that appears under its name only when it is complete."""

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO

import vapoursynth as vs

from vsvsr.errors import UserError
from vsvsr.video import matroska
from vsvsr.video.ffmpeg import find_ffmpeg
from vsvsr.video.source import Video

_NANOSECOND = Fraction(1, matroska.TIMESTAMPS_PER_SECOND)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How the video is compressed.

    Attributes:
        encoder: one of ``ffmpeg -encoders``.
        crf: constant quality of the encoders that have it (libx264, libx265, libsvtav1, ...), lower is better.
        options: further ffmpeg output options without the leading hyphen, e.g. ``("preset", "slow")``.
    """

    encoder: str = "libx264"
    crf: int = 18
    options: tuple[tuple[str, str], ...] = ()

    def arguments(self) -> list[str]:
        quality = ["-crf", str(self.crf)] if self.encoder.startswith("lib") else []
        return ["-c:v", self.encoder, *quality, *(word for key, value in self.options for word in (f"-{key}", value))]


@contextmanager
def encode(
    clip: vs.VideoNode, source: Video, source_path: Path, target: Path, *, first: int, encoding: Encoding
) -> Iterator[Callable[[vs.VideoFrame], None]]:
    """Give a function that takes the frames of ``clip``, one after the other; ``target`` appears when all went well.

    Frames, audio streams (copied), chapters and metadata go through ffmpeg into a temporary file beside ``target``,
    which takes its name at the end. However the body is left before that, ffmpeg is stopped and the file removed.

    Args:
        clip: integer samples, as many frames as follow ``first`` or fewer.
        source: what ``source_path`` is, for timestamps and tags.
        first: frame of the source that the clip begins with. If it is not 0, or the clip is shorter than the source,
            time begins at 0 there and the audio is cut.

    Raises:
        UserError: ffmpeg failed; the message has its first complaint.
    """
    ffmpeg = find_ffmpeg()
    last = first + clip.num_frames
    cut = clip.num_frames != source.clip.num_frames
    zero = source.timestamps[first] if cut else _start_time(ffmpeg, source_path)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    command = [
        *(ffmpeg, "-hide_banner", "-loglevel", "error", "-nostats", "-y"),
        # Timestamps of the pipe are final: no shift to 0. One frame suffices to know the stream.
        *("-seek_timestamp", "1", "-probesize", "32", "-f", "matroska", "-i", "pipe:0"),
        *(_cut_arguments(ffmpeg, source_path, zero, source.timestamps[last]) if cut else ()),
        *("-vn", "-i", str(source_path)),
        *("-map", "0:v", "-map", "1:a?", "-map_metadata", "1", "-map_chapters", "1", "-c:a", "copy"),
        *("-fps_mode", "passthrough", "-enc_time_base", f"{source.time_base.numerator}:{source.time_base.denominator}"),
        *encoding.arguments(),
        *(("-movflags", "+faststart") if target.suffix.lower() in (".mp4", ".m4v", ".mov") else ()),
        str(temporary),
    ]
    with tempfile.TemporaryFile() as complaints:
        # A session of its own keeps Ctrl-C from reaching ffmpeg, which would finish the half file.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=complaints, start_new_session=True)
        assert process.stdin is not None
        pipe = process.stdin
        timestamps = iter(zip(source.timestamps[first:last], source.timestamps[first + 1 :], strict=False))

        def write(frame: vs.VideoFrame) -> None:
            now, after = next(timestamps)
            planes = list(frame.readchunks())
            for piece in matroska.frame(now - zero, after - now, planes, sum(plane.nbytes for plane in planes)):
                pipe.write(piece)

        try:
            try:
                pipe.write(matroska.header(_track(clip, source)))
                yield write
                pipe.close()
                failed = process.wait() != 0
            except BrokenPipeError:
                failed = True
            if failed:
                process.wait()
                raise UserError(f"{target}: {_complaint(complaints).replace(str(temporary), str(target))}")
            temporary.replace(target)
        finally:
            process.kill()
            process.wait()
            with suppress(BrokenPipeError):
                pipe.close()
            temporary.unlink(missing_ok=True)


def _track(clip: vs.VideoNode, source: Video) -> matroska.VideoTrack:
    seconds = (source.timestamps[-1] - source.timestamps[0]) * _NANOSECOND
    return matroska.VideoTrack(
        width=clip.width,
        height=clip.height,
        fourcc=_fourcc(clip.format),
        colour=source.colour,
        sample_aspect_ratio=source.sample_aspect_ratio,
        frame_rate=source.clip.num_frames / seconds,
    )


def _fourcc(video_format: vs.VideoFormat) -> bytes:
    """As in ffmpeg's table of raw formats: ``Y3``, log2 of the subsamplings as digits, bits; and three older names."""
    bits = video_format.bits_per_sample
    if video_format.color_family == vs.GRAY:
        return b"Y800" if bits == 8 else bytes((*b"Y1", 0, bits))
    subsampling = (video_format.subsampling_w, video_format.subsampling_h)
    if bits == 8:
        return {(1, 1): b"I420", (1, 0): b"Y42B", (0, 0): b"444P"}[subsampling]
    return bytes((*b"Y3", {(1, 1): 11, (1, 0): 10, (0, 0): 0}[subsampling], bits))


def _start_time(ffmpeg: str, path: Path) -> int:
    """Nanoseconds that ffmpeg takes off every timestamp of ``path`` when it reads it."""
    described = subprocess.run([ffmpeg, "-hide_banner", "-i", path], capture_output=True, text=True, errors="replace")
    start = re.search(r"Duration: .*, start: (-?\d+\.\d+)", described.stderr)
    return int(Fraction(start[1]) * matroska.TIMESTAMPS_PER_SECOND) if start else 0


def _cut_arguments(ffmpeg: str, path: Path, begin: int, end: int) -> list[str]:
    start = Fraction(begin - _start_time(ffmpeg, path)) * _NANOSECOND
    return ["-ss", f"{float(start):.6f}", "-t", f"{float((end - begin) * _NANOSECOND):.6f}"]


def _complaint(stream: IO[bytes]) -> str:
    stream.seek(0)
    lines = stream.read().decode(errors="replace").splitlines()
    return re.sub(r"^(\[[^]]*\] )+", "", lines[0]) if lines else "ffmpeg failed without a word"
