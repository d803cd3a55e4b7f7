"""FastReal: FastRealVSR, a unidirectional recurrent network with hidden state attention."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from vsvsr.errors import check
from vsvsr.filters.arguments import Argument
from vsvsr.filters.clip import Clip
from vsvsr.filters.settings import SMALLEST_TILE, RecurrentSettings

if TYPE_CHECKING:
    from vsvsr.filters.session import FilterSession
    from vsvsr.models.fastreal import Restarts
    from vsvsr.streaming import Segments


DEFAULT_MODEL = "fastreal-x4"


@dataclass(frozen=True, kw_only=True)
class FastRealSettings(RecurrentSettings):
    """FastRealVSR: recurrent super-resolution of real-world video."""

    model: Annotated[str, Argument("weights in the package, by name", otherwise=DEFAULT_MODEL)] = ""


def create(settings: FastRealSettings, clip: Clip) -> "FilterSession":
    """Load the network and make its streaming session."""
    from collections.abc import Sequence
    from functools import partial

    from vsvsr.engine.device import choose_device, compute_type
    from vsvsr.engine.memory import fit_tiles, rehearse
    from vsvsr.engine.recurrent import RecurrentNetwork
    from vsvsr.engine.scenes import SceneDetector
    from vsvsr.engine.tiling import TileGrid
    from vsvsr.filters.session import FilterSession
    from vsvsr.filters.weights import find_weights
    from vsvsr.models.fastreal import load
    from vsvsr.streaming import RecurrentSession

    device = choose_device(settings.device_index)
    dtype = compute_type(clip.format, device)
    loaded = load(find_weights("FastReal", settings, DEFAULT_MODEL))
    network = loaded.place(device, dtype)

    def open_model(tile: Sequence[int]) -> RecurrentNetwork:
        tiles = TileGrid(
            clip.width, clip.height, tile, settings.tile_pad, smallest=loaded.smallest_side, scale=loaded.scale
        )
        model = RecurrentNetwork(network, device, dtype, tiles)
        rehearse(device, partial(model.dry_run, clip.width, clip.height))
        return model

    segments = _segments(settings, loaded.restarts)
    model, tile = fit_tiles(settings.tile, clip.width, clip.height, open_model, smallest=SMALLEST_TILE)
    session = RecurrentSession(
        model,
        segments,
        budget=settings.state_cache * 1_000_000,
        preview=settings.preview,
        scene_change=settings.scene_change > 0,
        detector=SceneDetector() if settings.scene_change == 1 else None,
    )
    return FilterSession(session, device, loaded.scale, segments, tile)


def _segments(settings: FastRealSettings, restarts: "Restarts") -> "Segments":
    """The grid of restarts: what the settings give, else what belongs to the weights, but no warm-up longer than a
    segment."""
    from vsvsr.streaming import Segments

    segment = restarts.segment if settings.segment is None else settings.segment
    warmup = settings.warmup
    if warmup is None:
        warmup = min(restarts.warmup, segment) if segment else restarts.warmup
    check(not segment or warmup <= segment, "warmup", warmup, f"at most {segment}, the segment of the weights")
    return Segments(length=segment, warmup=warmup)
