"""What fits into the device's memory: tiles, and features that wait."""

import logging
from collections.abc import Callable, Sequence

import torch

from vsvsr.errors import UserError

_log = logging.getLogger(__name__)


def fit_tiles[Model](
    tile: Sequence[int], width: int, height: int, open_model: Callable[[Sequence[int]], Model], *, smallest: int
) -> Model:
    """The model with the tiles that were asked for, or, where those run out of memory, with the largest that do not.

    Decided once, at construction: tiles that changed within a clip would show.

    Args:
        tile: width and height asked for, 0 = everything.
        width: source pixels of a frame.
        height: source pixels of a frame.
        open_model: makes the model for a tile and tries it on one frame; raises ``torch.OutOfMemoryError``.
        smallest: sides of a tile are not made smaller than this.

    Raises:
        UserError: not even the smallest tile fits.
    """
    tried = tile
    while True:
        try:
            model = open_model(tried)
        except torch.OutOfMemoryError:
            smaller = _halved(tried[0] or width, tried[1] or height, tried, smallest)
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


def feature_budget(megabytes: int | None, device: torch.device) -> int | None:
    """Bytes of waiting features that a chunk may keep on the device, the others wait in host memory; None = no limit.

    Called at construction, when the network has made its dry run and holds the memory it works in. By default a third
    of what is free then: where two readers take turns, two chunks are at work.

    Args:
        megabytes: what the user wants.
        device: where the network is; on the CPU there is nothing to offload.
    """
    if device.type == "cpu":
        return None
    if megabytes is not None:
        return megabytes * 1_000_000
    free, _ = torch.cuda.mem_get_info(device)
    return free // 3


def _halved(width: int, height: int, tile: Sequence[int], smallest: int) -> tuple[int, int] | None:
    """Half of the tile of ``width x height`` pixels along its longer side; None when that is too small."""
    if max(width, height) < 2 * smallest:
        return None
    # The side that is not halved keeps its 0: the whole axis, without a border in it.
    return (-(-width // 2), tile[1]) if width >= height else (tile[0], -(-height // 2))
