"""A network that sees frames in order and goes on where it stopped: planes in, planes out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from vsvsr.engine.planes import Frame, Output, Planes
from vsvsr.engine.transfer import transfer


class Result(Protocol):
    """A frame that is ready to be written."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        ...


class Restoration[R: Result](Protocol):
    """The network over a stretch of one scene, frame by frame."""

    def push(self, frame: Tensor) -> R | None:
        """Take a frame ``(3, h, w)``; gives an earlier one once there is one."""
        ...

    def finish(self) -> Iterator[R]:
        """The frames still inside, in order."""
        ...


class ContinuedModel[R: Result](Protocol):
    """What a network offers whose outputs come out some frames after their inputs."""

    @property
    def scale(self) -> int:
        """Output pixels per input pixel in each direction."""
        ...

    @property
    def reach(self) -> int:
        """Frames to each side on which an output depends."""
        ...

    @property
    def lead(self) -> int:
        """Frames before the first wanted one that must not be skipped."""
        ...

    def restoration(self, skip: int, first: int) -> Restoration[R]:
        """Begin a stretch at frame ``first`` of the clip; for its first ``skip`` frames nothing comes out."""
        ...

    def render(self, result: R, planes: Sequence[Tensor]) -> None:
        """Write the frame into three 2-D tensors."""
        ...


@dataclass(frozen=True, slots=True)
class ContinuedResult[R: Result]:
    """A frame that is ready to be written.

    Attributes:
        result: the network's.
        non_finite: see `Frame`.
    """

    result: R
    non_finite: Tensor


class _Stream[R: Result]:
    """A stretch of one scene on its way through the network.

    Args:
        restoration: what its frames go through.
        first: number of its first frame in the clip.
        skipped: frames at its start for which nothing comes out.

    Attributes:
        first: number in the clip of the frame from which is counted.
        received: frames pushed, counted from ``first``.
        delivered: frames that came out, the skipped ones included.
        ended: nothing more is pushed.
    """

    def __init__(self, restoration: Restoration[R], first: int, skipped: int) -> None:
        self.first = first
        self.received = 0
        self.delivered = skipped
        self.ended = False
        self._restoration = restoration
        self._rest: Iterator[R] = iter(())

    def move(self, frames: int) -> None:
        """Count from a frame that lies so many frames after ``first``."""
        self.first += frames
        self.received -= frames
        self.delivered -= frames

    def advance(self, frames: Sequence[Frame]) -> R | None:
        """Push the next of ``frames``, which begin at ``first``; when they are over, take one more frame out."""
        if self.received < len(frames):
            self.received += 1
            result = self._restoration.push(frames[self.received - 1].pixels[0])
        else:
            if not self.ended:
                self.ended = True
                self._rest = self._restoration.finish()
            result = next(self._rest)
        self.delivered += result is not None
        return result


class ContinuedNetwork[R: Result]:
    """Feeds a network from VapourSynth's planes and lets it write into them.

    Args:
        device: where the network is.
        dtype: what it computes in.

    Attributes:
        model: the network with its settings; set before the first chunk, when they are known.
    """

    model: ContinuedModel[R]

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._transfer = transfer(device, dtype)
        self._stream: _Stream[R] | None = None

    def read(self, frame: Planes) -> Frame:
        """See `ChunkModel.read`."""
        read = self._transfer.read(frame)
        return Frame(read.pixels.contiguous(), read.non_finite)

    def run(self, pictures: Sequence[Frame], emit: range, first: int) -> Iterator[ContinuedResult[R]]:
        """See `ChunkModel.run`. A call that goes on where the last one stopped continues from the features that wait,
        so that playback sees each frame once; the pixels are the same.
        """
        stream = self._resume(emit, len(pictures), first)
        if stream is None:
            skip = max(emit.start - self.model.lead, 0)
            stream = _Stream(self.model.restoration(skip, first), first, skip)
        self._stream = None
        while stream.delivered < emit.stop:
            result = stream.advance(pictures)
            if result is None or stream.delivered <= emit.start:
                continue
            if stream.delivered == emit.stop:
                # Before the last frame goes out, after which nobody may ask again.
                self._stream = stream
            yield ContinuedResult(result, pictures[stream.delivered - 1].non_finite)

    def _resume(self, emit: range, length: int, first: int) -> _Stream[R] | None:
        """The last call's stream, if a new one would give the same frames in ``emit`` after more work."""
        stream = self._stream
        if stream is None:
            return None
        moved = first - stream.first
        received = stream.received - moved
        reaches = received == length if stream.ended else 0 <= received <= length
        if not reaches or stream.delivered - moved != emit.start or (moved and emit.start < self.model.reach):
            return None
        stream.move(moved)
        return stream

    def render(self, result: ContinuedResult[R], output: Output) -> None:
        """See `ChunkModel.render`."""
        self._transfer.write(partial(self.model.render, result.result), output, result.non_finite)

    def size(self, result: ContinuedResult[R]) -> int:
        """See `ChunkModel.size`."""
        return result.result.nbytes

    def forget(self) -> None:
        """See `ChunkModel.forget`."""
        self._stream = None
