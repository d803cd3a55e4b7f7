"""What a filter hands to the bridge."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from vsvsr.engine.chunked import ChunkedNetwork, Chunks
from vsvsr.engine.device import sample_type
from vsvsr.engine.memory import feature_budget, fit_tiles, rehearse
from vsvsr.engine.planes import Output, Planes
from vsvsr.engine.scenes import SceneDetector
from vsvsr.engine.tiling import TileGrid
from vsvsr.filters.clip import Clip
from vsvsr.filters.settings import SMALLEST_TILE, ChunkedSettings
from vsvsr.models.common.loading import Loaded
from vsvsr.streaming import ChunkedSession, ChunkModel, Segments, Session

_NEVER = Segments(length=0, warmup=0)


@dataclass(frozen=True)
class FilterSession:
    """A session ready to make frames.

    Attributes:
        session: makes the frames; all its calls happen on the thread of ``device``.
        device: where the network is.
        scale: output size over source size.
        segments: where the filter starts afresh on a fixed grid: segments with a warm-up, or chunks with context.
        tile: width and height of the tiles that were chosen, in pixels of the source; 0 = everything.
    """

    session: Session[Planes, Output]
    device: torch.device
    scale: int
    segments: Segments = _NEVER
    tile: tuple[int, int] = (0, 0)


def open_chunked[Network: nn.Module](
    chunks: Chunks,
    loaded: Loaded[Network],
    settings: ChunkedSettings,
    clip: Clip,
    device: torch.device,
    dtype: torch.dtype,
    *,
    result_size: int,
) -> FilterSession:
    """The session of a network that looks both ways and takes frames of any size.

    Args:
        chunks: runs the network.
        loaded: the network.
        settings: of the filter.
        clip: what the frames look like.
        device: where the network is.
        dtype: what it computes in.
        result_size: bytes that a frame takes before it is written.
    """

    def open_model(tile: Sequence[int]) -> ChunkedNetwork:
        tiles = TileGrid(
            clip.width, clip.height, tile, settings.tile_pad, smallest=loaded.smallest_side, scale=loaded.scale
        )
        model = ChunkedNetwork(chunks, device, dtype, tiles, result_size)
        rehearse(device, partial(model.dry_run, clip.width, clip.height, sample_type(clip.format)))
        return model

    model, tile = fit_tiles(settings.tile, clip.width, clip.height, open_model, smallest=SMALLEST_TILE)
    model.budget = feature_budget(settings.feature_cache, device)
    return in_chunks(model, settings, clip, device, loaded.scale, tile)


def in_chunks[Picture, Result](
    model: ChunkModel[Planes, Picture, Result, Output],
    settings: ChunkedSettings,
    clip: Clip,
    device: torch.device,
    scale: int,
    tile: tuple[int, int],
) -> FilterSession:
    """The session that runs ``model`` chunk by chunk, as a filter's settings say."""
    session = ChunkedSession(
        model,
        frames=clip.frames,
        length=settings.length or clip.frames,
        overlap=settings.overlap,
        budget=settings.state_cache * 1_000_000,
        scene_change=settings.scene_change > 0,
        detector=SceneDetector() if settings.scene_change == 1 else None,
    )
    return FilterSession(session, device, scale, Segments(length=settings.length, warmup=settings.overlap), tile)
