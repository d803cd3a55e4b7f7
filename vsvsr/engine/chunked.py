"""A network that sees chunks as the streaming engine wants it: planes in, planes out, tile by tile."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from vsvsr.engine.planes import Frame, Output, Planes
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


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """A frame that is ready to be written.

    Attributes:
        parts: what writes each tile.
        non_finite: see `Frame`.
    """

    parts: tuple[Write, ...]
    non_finite: Tensor


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

    def read(self, frame: Planes) -> Frame:
        """See `ChunkModel.read`."""
        read = self._transfer.read(frame)
        return Frame(self._tiles.pad(read.pixels), read.non_finite)

    def run(self, pictures: Sequence[Frame], emit: range, first: int) -> Iterator[ChunkResult]:
        """See `ChunkModel.run`."""
        buffer = OffloadBuffer(self.budget)
        cut = zip(*(self._tiles.cut(picture.pixels) for picture in pictures), strict=True)
        results = zip(*(self._chunks(part, emit, buffer=buffer) for part in cut), strict=True)
        return (ChunkResult(parts, pictures[i].non_finite) for i, parts in zip(emit, results, strict=True))

    def render(self, result: ChunkResult, output: Output) -> None:
        """See `ChunkModel.render`."""
        self._transfer.write(partial(self._tiles.write, result.parts), output, result.non_finite)

    def dry_run(self, width: int, height: int, samples: torch.dtype) -> None:
        """Run a white frame between black ones on the device, so that out-of-memory shows at construction.

        All frames differ everywhere: what a network leaves out where nothing changed has to fit, too.

        Args:
            width: of the source.
            height: of the source.
            samples: type of the planes.
        """
        black = self._tiles.pad(torch.zeros((1, 3, height, width), dtype=self._dtype, device=self._device))
        # Two pictures, as a transfer has them.
        size = 2, 3, height * self._tiles.scale, width * self._tiles.scale
        picture, _ = black.new_empty(size, dtype=samples)
        finite = black.new_zeros(1, dtype=torch.bool)
        frames = [Frame(pixels, finite) for pixels in (black, torch.ones_like(black), black)]
        for result in self.run(frames, range(3), 0):
            self._tiles.write(result.parts, picture.unbind())

    def size(self, result: ChunkResult) -> int:
        """See `ChunkModel.size`."""
        return self._result_size

    def forget(self) -> None:
        """See `ChunkModel.forget`: chunks have nothing in common."""
