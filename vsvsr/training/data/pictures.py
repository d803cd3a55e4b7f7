"""Photographs and videos to make clips of."""

from pathlib import Path

import numpy as np
from PIL import Image

from vsvsr.errors import UserError

_PICTURES = {".jpg", ".jpeg", ".png"}
_VIDEOS = {".mp4", ".mkv", ".webm", ".mov", ".avi"}


def find_sources(folder: Path) -> tuple[list[Path], list[Path]]:
    """Pictures and videos below ``folder``, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    pictures = [path for path in files if path.suffix.lower() in _PICTURES]
    videos = [path for path in files if path.suffix.lower() in _VIDEOS]
    if not pictures and not videos:
        raise UserError(
            f"no pictures or videos below {folder}; give a folder with jpg, png, mp4, mkv, webm, mov or avi"
        )
    return pictures, videos


def load_photograph(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A photograph ``(h, w, 3)``, halved while it stays large: that removes JPEG blocks and sensor noise.

    A picture smaller than ``size`` is enlarged to it.
    """
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    while min(image.size) >= 1400:
        image = image.reduce(2)
    enlarge = max(size[0] / image.height, size[1] / image.width)
    if enlarge > 1:
        wanted = (round(image.width * enlarge) + 1, round(image.height * enlarge) + 1)
        image = image.resize(wanted, Image.Resampling.LANCZOS)
    return np.asarray(image)
