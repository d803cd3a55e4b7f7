"""Photographs and videos to make clips of."""

from pathlib import Path

import numpy as np
from PIL import Image

from vsvsr.errors import UserError

_PICTURES = {".jpg", ".jpeg", ".png"}
_VIDEOS = {".mp4", ".mkv", ".webm", ".mov", ".avi"}


def find_sources(folder: Path) -> tuple[list[Path], list[Path]]:
    """Pictures and videos below ``folder``, sorted; `UserError` when there are none."""
    pictures, videos = _files(folder, _PICTURES), _files(folder, _VIDEOS)
    if not pictures and not videos:
        raise UserError(
            f"no pictures or videos below {folder}; give a folder with jpg, jpeg, png, mp4, mkv, webm, mov or avi"
        )
    return pictures, videos


def find_pictures(folder: Path) -> list[Path]:
    """Pictures below ``folder``, sorted; `UserError` when there are none."""
    pictures = _files(folder, _PICTURES)
    if not pictures:
        raise UserError(f"no pictures below {folder}; give a folder with jpg, jpeg or png")
    return pictures


def _files(folder: Path, suffixes: set[str]) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())


def load_photograph(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A photograph ``(h, w, 3)``, halved while it stays large: that removes JPEG blocks and sensor noise.

    A picture smaller than ``size`` is enlarged to it.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except OSError:
        raise UserError(f"{path} is no picture that can be read") from None
    while min(image.size) >= 1400:
        image = image.reduce(2)
    enlarge = max(size[0] / image.height, size[1] / image.width)
    if enlarge > 1:
        wanted = (round(image.width * enlarge) + 1, round(image.height * enlarge) + 1)
        image = image.resize(wanted, Image.Resampling.LANCZOS)
    return np.asarray(image)
