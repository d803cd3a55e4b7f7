"""Small films made with ffmpeg, and what is in a film."""

import subprocess
from fractions import Fraction
from pathlib import Path

import vapoursynth as vs

from tests.clips import clip_path
from vsvsr.video.ffmpeg import find_ffmpeg


def ffmpeg(*arguments: str | Path) -> str:
    command = [find_ffmpeg(), "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def small(path: Path, *, vf: str = "null", options: tuple[str, ...] = (), frames: int = 8) -> Path:
    """A small piece of a real film, with its sound, as ``path``."""
    film = clip_path("bigbuckbunny.mp4")
    video = ("-vf", f"scale=64:36,{vf}", "-fps_mode", "vfr", "-frames:v", str(frames))
    ffmpeg("-t", str(frames / 12), "-i", film, *video, "-c:v", "libx264", "-c:a", "copy", *options, path)
    return path


def decode(path: Path) -> tuple[vs.VideoNode, list[Fraction]]:
    """The frames of a file as they are in it, and their timestamps in seconds."""
    opened = vs.core.bs.VideoSource(str(path), cachemode=0, exporttimestamps=1)
    return opened["clip"], [Fraction(t * opened["timebasenum"], opened["timebaseden"]) for t in opened["timestamps"]]
