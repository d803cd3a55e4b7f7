"""Photographs, videos and image sequences to make clips of."""

from pathlib import Path

import numpy as np
from PIL import Image

from vsvsr.errors import UserError
from vsvsr.video.picture import open_picture
from vsvsr.video.source import image_sequence

_PICTURES = {".jpg", ".jpeg", ".png"}
_SHORTEST_SEQUENCE = 7
_VIDEOS = {".mp4", ".mkv", ".webm", ".mov", ".avi"}


def find_sources(folder: Path) -> tuple[list[Path], list[Path]]:
    """Photographs and videos below ``folder``, sorted; `UserError` when there are none.

    A folder of numbered pictures of one size without gaps, at least seven, is a video, as in REDS
    (``000/00000000.png``, ...) and Vimeo-90K (``00001/0001/im1.png``, ...).
    """
    pictures, videos = _files(folder, _PICTURES), _files(folder, _VIDEOS)
    sequences = {path for path in {picture.parent for picture in pictures} if _is_sequence(path)}
    pictures = [picture for picture in pictures if picture.parent not in sequences]
    videos = sorted([*videos, *sequences])
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


def _is_sequence(folder: Path) -> bool:
    try:
        pictures = image_sequence(folder)
    except UserError:
        return False
    return len(pictures) >= _SHORTEST_SEQUENCE and len({_size(path) for path in pictures}) == 1


def _size(path: Path) -> tuple[int, int]:
    with open_picture(path) as opened:
        return opened.size


def _files(folder: Path, suffixes: set[str]) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())


def load_photograph(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A photograph ``(h, w, 3)``, halved while it stays large: that removes JPEG blocks and sensor noise.

    A picture smaller than ``size`` is enlarged to it.
    """
    with open_picture(path) as opened:
        image = opened.convert("RGB")
    while min(image.size) >= 1400:
        image = image.reduce(2)
    enlarge = max(size[0] / image.height, size[1] / image.width)
    if enlarge > 1:
        wanted = (round(image.width * enlarge) + 1, round(image.height * enlarge) + 1)
        image = image.resize(wanted, Image.Resampling.LANCZOS)
    return np.asarray(image)
