"""Finding ffmpeg, and raw frames through it."""

import math
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import BinaryIO, Literal

import imageio_ffmpeg
import numpy as np

from vsvsr.errors import UserError
from vsvsr.files import end, undone

Codec = Literal["libx264", "mpeg2video", "ffv1"]
_TOLERANCE = 128_000
"""Bits by which a rate may be missed: less than of ffmpeg, whose own lets short clips be of any rate."""
Deinterlacer = Literal["bwdif", "yadif"]


def find_ffmpeg() -> str:
    """The ffmpeg on the path, else the one that imageio-ffmpeg carries; ``UserError`` when there is neither."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        raise UserError("ffmpeg is neither on the path nor in imageio-ffmpeg; install ffmpeg") from None


def run(arguments: list[str], data: bytes | None = None) -> tuple[int, bytes, str]:
    """Run ffmpeg with ``data`` on its standard input: exit status, standard output, what it says.

    It is stopped when the process is told to end.
    """
    command = [find_ffmpeg(), "-hide_banner", *arguments]
    given = subprocess.DEVNULL if data is None else subprocess.PIPE

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    with undone(start, end) as process:
        output, said = process.communicate(data)
    return process.returncode, output, said.decode(errors="replace")


def url(path: Path | str) -> str:
    """A file as ffmpeg takes it without looking for a protocol or an option in its name."""
    return f"file:{path}"


def describe(path: Path) -> str:
    """What ffmpeg says about a file: container, times, streams."""
    return run(["-i", url(path)])[2]


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a video file as it is stored; (0, 0) if ffmpeg finds no video in it."""
    found = re.search(r"Stream #.*Video: .*?\b(\d{2,})x(\d+)", describe(path))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def is_truncated(path: Path) -> bool:
    """Whether a file ends before its container says so. Reads it to its end.

    Known for Matroska, WebM, MP4, MOV and AVI, and for FLV that states its size, as ffmpeg's does. MPEG-TS and MPEG-PS
    say nothing of their length: there a film that ends early cannot be told from a whole one.
    """
    if _stated_size(path) > path.stat().st_size:
        return True
    said = run(["-v", "error", "-i", url(path), "-map", "0:v:0", "-map", "0:a?", "-c", "copy", "-f", "null", "-"])[2]
    return "File ended prematurely" in said or "partial file" in said


def _stated_size(path: Path) -> int:
    """Bytes that an AVI or FLV file has as its headers say; 0 where they say nothing."""
    with path.open("rb") as file:
        begin = file.read(4096)
        size = begin.find(b"filesize\0") + len(b"filesize\0")  # in FLV's metadata, a double
        if begin.startswith(b"FLV") and size > 9 and len(begin) >= size + 8:
            (stated,) = struct.unpack_from(">d", begin, size)
            return int(stated) if math.isfinite(stated) else 0
        end = 0
        if begin.startswith(b"RIFF") and begin[8:12] == b"AVI ":
            while (header := _at(file, end, 8)).startswith(b"RIFF") and len(header) == 8:
                end += 8 + int.from_bytes(header[4:], "little")
        return end


def _at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _ffmpeg(arguments: list[str], data: bytes | None = None) -> bytes:
    status, output, said = run(["-loglevel", "error", *arguments], data)
    if status:
        raise UserError(f"ffmpeg failed: {' '.join(said.split())[-300:]}")
    return output


def through_x264(frames: np.ndarray, *, crf: int, profile: str) -> np.ndarray:
    """Encode ``(t, h, w, 3)`` uint8 frames as H.264 (yuv420p, 25 fps) and decode them again.

    Args:
        frames: even height and width.
        crf: constant rate factor.
        profile: ``baseline``, ``main`` or ``high``.
    """
    return _through(frames, ["-c:v", "libx264", "-crf", str(crf), "-profile:v", profile])


def through_codec(frames: np.ndarray, codec: Codec, quality: int) -> np.ndarray:
    """Encode ``(t, h, w, 3)`` uint8 frames of even height and width as yuv420p and decode them again.

    Args:
        frames: what to encode.
        codec: of ffmpeg.
        quality: crf of ``libx264``, quantiser of ``mpeg2video``, nothing to ``ffv1``, which is lossless.
    """
    return _through(frames, _settings(codec, quality))


def through_bitrate(frames: np.ndarray, codec: Literal["libx264", "mpeg4"], bits: int) -> np.ndarray:
    """Encode ``(t, h, w, 3)`` uint8 frames of even height and width as yuv420p, and decode them again.

    Args:
        frames: what to encode.
        codec: of ffmpeg.
        bits: of a frame, on average.
    """
    return _through(frames, ["-c:v", codec, "-b:v", str(bits), "-bt", str(_TOLERANCE)], rate=1)


def through_fields(frames: np.ndarray, codec: Codec, quality: int, *, deinterlacer: Deinterlacer) -> np.ndarray:
    """What is left of ``frames`` after interlacing: of each frame one field, its other lines guessed.

    Even frames leave their upper field, odd ones their lower field; pairs of fields are compressed as one interlaced
    picture, and a deinterlacer makes a frame of each field.

    Args:
        frames: ``(t, h, w, 3)`` uint8, height a multiple of 4, width even.
        codec: as in `through_codec`.
        quality: as in `through_codec`.
        deinterlacer: filter of ffmpeg.
    """
    even = np.concatenate((frames, frames[-1:])) if len(frames) % 2 else frames
    woven = even[0::2].copy()
    woven[:, 1::2] = even[1::2, 1::2]
    # Chroma is halved within each field, and the encoder told that neighbouring lines differ in time.
    arguments = ["-vf", "scale=interl=1,setfield=tff", "-flags", "+ilme+ildct", *_settings(codec, quality)]
    return _through(woven, arguments, decode=f"{deinterlacer}=mode=send_field:parity=tff")[: len(frames)]


def _settings(codec: Codec, quality: int) -> list[str]:
    option = {"libx264": "-crf", "mpeg2video": "-q:v"}.get(codec)
    return ["-c:v", codec, *([option, str(quality)] if option else [])]


def _through(frames: np.ndarray, codec: list[str], *, decode: str | None = None, rate: int = 25) -> np.ndarray:
    """Frames through an encoder and back, ``decode`` being a filter on the way back, ``rate`` frames in a second."""
    height, width = frames.shape[1:3]
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(rate), "-i", "-"]
    with tempfile.TemporaryDirectory() as folder:
        path = url(f"{folder}/clip.mkv")
        _ffmpeg(["-y", *source, *codec, "-pix_fmt", "yuv420p", "-threads", "1", path], frames.tobytes())
        back = ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        decoded = _ffmpeg(["-threads", "1", "-i", path, *(["-vf", decode] if decode else []), *back])
    return np.frombuffer(bytearray(decoded), np.uint8).reshape(-1, height, width, 3)
