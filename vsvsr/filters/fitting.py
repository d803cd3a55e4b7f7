"""What a filter does when its frames are too large for the device's memory."""

import logging
from collections.abc import Callable, Sequence

import torch

from vsvsr.errors import UserError
from vsvsr.filters.clip import Clip
from vsvsr.filters.settings import SMALLEST_TILE

_log = logging.getLogger(__name__)


def fit_tiles[Model](tile: Sequence[int], clip: Clip, open_model: Callable[[Sequence[int]], Model]) -> Model:
    """The model with the tiles that were asked for, or, where those run out of memory, with the largest that do not.

    Decided once, when the filter is made: tiles that changed within a clip would show.

    Args:
        tile: width and height asked for, 0 = everything.
        clip: what the frames look like.
        open_model: makes the model for a tile and tries it on one frame; raises ``torch.OutOfMemoryError``.

    Raises:
        UserError: not even the smallest tile fits.
    """
    tried = tile
    while True:
        try:
            model = open_model(tried)
        except torch.OutOfMemoryError:
            smaller = _halved(tried, clip)
        else:
            break
        if smaller is None:
            raise UserError(
                f"the device's memory is too small even for tile={list(tried)}; "
                "close what else uses it, or give device_index=-1 for the CPU"
            )
        tried = smaller
    if tried is not tile:
        _log.warning(
            "the device's memory is too small for tile=%s, using %s; give that to have it everywhere", tile, tried
        )
    return model


def _halved(tile: Sequence[int], clip: Clip) -> tuple[int, int] | None:
    """Half of the tile along its longer side; None when that is too small."""
    width, height = tile[0] or clip.width, tile[1] or clip.height
    if max(width, height) < 2 * SMALLEST_TILE:
        return None
    # The side that is not halved keeps its 0: the whole axis, without a border in it.
    return (-(-width // 2), tile[1]) if width >= height else (tile[0], -(-height // 2))
