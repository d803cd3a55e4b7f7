"""A network that sees chunks as the streaming engine wants it: planes in, planes out, tile by tile."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from vsvsr.engine.planes import Planes
from vsvsr.engine.tiling import TileGrid
from vsvsr.engine.transfer import transfer
from vsvsr.models.common import Write
from vsvsr.models.common.offload import OffloadBuffer


class Chunks(Protocol):
    """What a network offers that looks both ways."""

    def __call__(self, frames: Sequence[Tensor], emit: range, *, buffer: OffloadBuffer) -> Iterator[Write]:
        """The frames in ``emit``, one by one, as functions that write them.

        Args:
            frames: a stretch of the clip, ``(1, 3, h, w)`` each.
            emit: indices into ``frames``.
            buffer: where features wait.
        """
        ...


class ChunkedNetwork:
    """Feeds a network from VapourSynth's planes and lets it write into them.

    Args:
        chunks: the network.
        device: where it is.
        dtype: what it computes in.
        tiles: spatial tiles, each of which is a clip of its own.
        result_size: bytes that a frame takes before it is written.

    Attributes:
        budget: bytes of a chunk's features that may wait on the device, the others wait in host memory; None = no
            limit.
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
        self.budget: int | None = None

    def read(self, frame: Planes) -> Tensor:
        """See `ChunkModel.read`."""
        return self._tiles.pad(self._transfer.read(frame))

    def run(self, pictures: Sequence[Tensor], emit: range, first: int) -> Iterator[tuple[Write, ...]]:
        """See `ChunkModel.run`."""
        buffer = OffloadBuffer(self.budget)
        cut = zip(*(self._tiles.cut(picture) for picture in pictures), strict=True)
        return zip(*(self._chunks(part, emit, buffer=buffer) for part in cut), strict=True)

    def render(self, result: tuple[Write, ...], output: Planes) -> None:
        """See `ChunkModel.render`."""
        self._transfer.write(partial(self._tiles.write, result), output)

    def rehearse(self, width: int, height: int) -> None:
        """Run three black frames on the device, so that out-of-memory shows at construction."""
        black = self._tiles.pad(torch.zeros((1, 3, height, width), dtype=self._dtype, device=self._device))
        picture = black.new_empty((3, height * self._tiles.scale, width * self._tiles.scale))
        for result in self.run([black] * 3, range(3), 0):
            self._tiles.write(result, picture.unbind())

    def size(self, result: tuple[Write, ...]) -> int:
        """See `ChunkModel.size`."""
        return self._result_size
