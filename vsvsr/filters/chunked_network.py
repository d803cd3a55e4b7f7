"""A network that sees chunks as the streaming engine wants it: planes in, planes out, tile by tile."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from vsvsr.filters.clip import Clip
from vsvsr.filters.fitting import fit_tiles
from vsvsr.filters.opened import Opened
from vsvsr.filters.settings import ChunkedSettings
from vsvsr.filters.tiling import TileGrid
from vsvsr.frames import Planes
from vsvsr.streaming import ChunkedSession
from vsvsr.transfer import Write, transfer
from vsvsr.worker import worker_of


class Chunks(Protocol):
    """What a network offers that looks both ways."""

    def __call__(self, frames: Sequence[Tensor], emit: range) -> Iterator[Write]:
        """The frames in ``emit``, one by one, as functions that write them; ``frames`` are ``(1, 3, h, w)``."""
        ...


class ChunkedNetwork:
    """Feeds a network from VapourSynth's planes and lets it write into them.

    Args:
        chunks: the network.
        device: where it is.
        dtype: what it computes in.
        tiles: spatial tiles, each of which is a clip of its own.
        result_size: bytes that a frame takes before it is written.
    """

    def __init__(
        self, chunks: Chunks, device: torch.device, dtype: torch.dtype, tiles: TileGrid, result_size: int
    ) -> None:
        self._chunks = chunks
        self._device = device
        self._dtype = dtype
        self._tiles = tiles
        self._transfer = transfer(device, dtype)
        self._result_size = result_size

    def read(self, frame: Planes) -> Tensor:
        """See `ChunkModel.read`."""
        return self._tiles.pad(self._transfer.read(frame))

    def run(self, pictures: Sequence[Tensor], emit: range, first: int) -> Iterator[tuple[Write, ...]]:
        """See `ChunkModel.run`."""
        cut = zip(*(self._tiles.cut(picture) for picture in pictures), strict=True)
        return zip(*(self._chunks(part, emit) for part in cut), strict=True)

    def render(self, result: tuple[Write, ...], output: Planes) -> None:
        """See `ChunkModel.render`."""
        self._transfer.write(partial(self._tiles.write, result), output)

    def rehearse(self, width: int, height: int) -> None:
        """Run three black frames: what the device's memory is too small for, it is too small for now."""
        black = self._tiles.pad(torch.zeros((1, 3, height, width), dtype=self._dtype, device=self._device))
        picture = black.new_empty((3, 4 * height, 4 * width))
        for result in self.run([black] * 3, range(3), 0):
            self._tiles.write(result, picture.unbind())

    def size(self, result: tuple[Write, ...]) -> int:
        """See `ChunkModel.size`."""
        return self._result_size


def offloads(settings: ChunkedSettings, device: torch.device, size: int) -> bool:
    """Whether a chunk's features of ``size`` bytes wait in host memory, to stay within the budget on the device."""
    return device.type != "cpu" and size > settings.state_cache * 1_000_000


def open_chunked(
    chunks: Chunks, settings: ChunkedSettings, clip: Clip, device: torch.device, dtype: torch.dtype, result_size: int
) -> Opened:
    """The streaming session of a x4 network that takes frames of any size; see `ChunkedNetwork` for the arguments."""

    def open_model(tile: Sequence[int]) -> ChunkedNetwork:
        tiles = TileGrid(clip.width, clip.height, tile, settings.tile_pad, smallest=16, scale=4)
        model = ChunkedNetwork(chunks, device, dtype, tiles, result_size)
        if device.type != "cpu":
            worker_of(device).run(partial(model.rehearse, clip.width, clip.height))
        return model

    session = ChunkedSession(
        fit_tiles(settings.tile, clip, open_model),
        frames=clip.frames,
        length=settings.length,
        overlap=settings.overlap,
        budget=settings.state_cache * 1_000_000,
        scene_change=settings.scene_change,
    )
    return Opened(session, device, scale=4)
