"""Raw frames through ffmpeg."""

import re
import subprocess
import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from vsvsr.errors import UserError


def _ffmpeg(arguments: list[str], data: bytes | None = None) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", *arguments]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:
        raise UserError(f"ffmpeg failed: {' '.join(done.stderr.decode(errors='replace').split())[-300:]}")
    return done.stdout


def video_size(path: Path) -> tuple[int, int]:
    """Height and width of a video file.

    Raises:
        UserError: ffmpeg finds no video in the file.
    """
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    text = subprocess.run(command, capture_output=True, check=False).stderr.decode(errors="replace")
    found = re.search(r"Video:.*?\b(\d{2,5})x(\d{2,5})\b", text)
    if found is None:
        raise UserError(f"{path} holds no video that ffmpeg can read")
    return int(found[2]), int(found[1])


def read_video(path: Path, *, first: int = 0, frames: int | None = None) -> np.ndarray:
    """Frames ``(t, h, w, 3)`` uint8 of a video file."""
    height, width = video_size(path)
    arguments = ["-threads", "1", "-i", str(path)]
    if first:
        arguments += ["-vf", f"select=gte(n\\,{first})"]
    if frames is not None:
        arguments += ["-frames:v", str(frames)]
    arguments += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    return np.frombuffer(bytearray(_ffmpeg(arguments)), np.uint8).reshape(-1, height, width, 3)


def through_x264(frames: np.ndarray, *, crf: int, profile: str) -> np.ndarray:
    """Encode ``(t, h, w, 3)`` uint8 frames as H.264 (yuv420p, 25 fps) and decode them again.

    Args:
        frames: even height and width.
        crf: constant rate factor.
        profile: ``baseline``, ``main`` or ``high``.
    """
    height, width = frames.shape[1:3]
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "25", "-i", "-"]
    codec = ["-c:v", "libx264", "-crf", str(crf), "-profile:v", profile, "-pix_fmt", "yuv420p", "-threads", "1"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        _ffmpeg(["-y", *source, *codec, str(path)], frames.tobytes())
        return read_video(path)
