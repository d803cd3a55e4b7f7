"""Pictures as files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from vsvsr.errors import UserError


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """A picture, for as long as the context lasts.

    Raises:
        UserError: it is none, or it is damaged, which may show only when its pixels are read.
    """
    try:
        with Image.open(path) as opened:
            yield opened
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # all of these are Pillow's own words
        raise UserError(f"{path} is no picture that can be read") from None
