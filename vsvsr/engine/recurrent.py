"""A recurrent network as the streaming engine wants it: planes in, planes out, one state per spatial tile."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vsvsr.engine.graph import CudaCapture, Recorder, copied
from vsvsr.engine.planes import Frame, Output, Planes
from vsvsr.engine.tiling import TileGrid
from vsvsr.engine.transfer import transfer


class Hidden(Protocol):
    """A hidden state: a tensor ``(1, c, h, w)``, or what stands for one in another runtime."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        ...


class Network[H: Hidden](Protocol):
    """What a unidirectional recurrent network offers; frames ``(1, 3, h, w)``."""

    @property
    def scale(self) -> int:
        """Output pixels per input pixel in each direction."""
        ...

    def propagate(self, frame: Tensor, previous: Tensor | None, hidden: H | None) -> H:
        """The next hidden state; from None the recurrence starts cold."""
        ...

    def render(self, hidden: H, frame: Tensor, planes: Sequence[Tensor]) -> None:
        """Write the top left of the picture into three 2-D tensors."""
        ...


@dataclass(frozen=True, slots=True)
class NetworkState[H: Hidden]:
    """The recurrence after a frame.

    Attributes:
        frame: that frame, padded to what the network takes, ``(1, 3, h, w)``.
        hidden: the hidden state of every tile.
        non_finite: see `Frame`.
    """

    frame: Tensor
    hidden: tuple[H, ...]
    non_finite: Tensor


class RecurrentNetwork[H: Hidden]:
    """Feeds a network from VapourSynth's planes and lets it write into them.

    With tiles, each tile carries a hidden state of its own through the clip: what happens beyond its context is unknown
    to it, so the picture differs from the untiled one.

    Args:
        network: on ``device``, in ``dtype``.
        device: where it is.
        dtype: what it computes in.
        tiles: spatial tiles.
    """

    def __init__(self, network: Network[H], device: torch.device, dtype: torch.dtype, tiles: TileGrid) -> None:
        self._network = network
        self._device = device
        self._dtype = dtype
        self._tiles = tiles
        self._transfer = transfer(device, dtype)
        # Of a frame; of a frame, the one before it and the state after that; of a state, its frame and planes.
        self._cold: Callable[[Tensor], Any] = partial(network.propagate, previous=None, hidden=None)
        self._next: Callable[[Tensor, Tensor, Any], Any] = network.propagate
        self._render: Callable[[Any, Tensor, Sequence[Tensor]], None] = network.render
        if device.type == "cuda" and isinstance(network, nn.Module):  # other runtimes cannot be recorded
            self._record(Recorder(CudaCapture(device)))

    def _record(self, recorder: Recorder) -> None:
        """Have each part of the work replayed. States stay immutable: they are copies."""
        network = self._network

        def draw(result: Tensor | None, hidden: Any, frame: Tensor) -> Tensor:
            if result is None:
                result = self._blank(frame)
            network.render(hidden, frame, result.unbind())
            return result

        cold, following = recorder(copied(self._cold)), recorder(copied(self._next))
        picture = recorder(draw)

        def render(hidden: Tensor, frame: Tensor, planes: Sequence[Tensor]) -> None:
            height, width = planes[0].shape
            for plane, channel in zip(planes, picture(hidden, frame), strict=True):
                plane.copy_(channel[:height, :width])

        self._cold = lambda frame: cold(frame).clone()
        self._next = lambda frame, previous, hidden: following(frame, previous, hidden).clone()
        self._render = render

    def step(self, state: NetworkState[H] | None, frame: Planes) -> NetworkState[H]:
        """See `RecurrentModel.step`."""
        return self._step(state, self._transfer.read(frame))

    def render(self, state: NetworkState[H], output: Output) -> None:
        """See `RecurrentModel.render`."""
        self._transfer.write(partial(self._write, state), output, state.non_finite)

    def dry_run(self, width: int, height: int, samples: torch.dtype) -> None:
        """Run every part once on black frames, so that out-of-memory shows at construction.

        Args:
            width: of the source.
            height: of the source.
            samples: type of the planes.
        """
        pixels = torch.zeros((1, 3, height, width), dtype=self._dtype, device=self._device)
        black = Frame(pixels, pixels.new_zeros(1, dtype=torch.bool))
        parts = self._tiles.cut(self._padded(pixels))
        for part in sorted(parts, key=Tensor.numel, reverse=True):  # as a recorder wants it
            hidden = self._next(part, part, self._cold(part))
            self._render(hidden, part, self._blank(part).unbind())
        state = self._step(self._step(None, black), black)
        scale = self._network.scale
        # Two pictures, as a transfer has them.
        picture, _ = pixels.new_empty((2, 3, height * scale, width * scale), dtype=samples)
        self._write(state, picture.unbind())

    def _blank(self, frame: Tensor) -> Tensor:
        """Memory for the picture of a frame or tile."""
        height, width = frame.shape[-2:]
        return frame.new_empty((3, height * self._network.scale, width * self._network.scale))

    def _padded(self, pixels: Tensor) -> Tensor:
        return self._tiles.pad(pixels).contiguous(memory_format=torch.channels_last)

    def _step(self, state: NetworkState[H] | None, frame: Frame) -> NetworkState[H]:
        current = self._padded(frame.pixels)
        parts = self._tiles.cut(current)
        if state is None:
            hidden = tuple(map(self._cold, parts))
        else:
            before = zip(parts, self._tiles.cut(state.frame), state.hidden, strict=True)
            hidden = tuple(self._next(*arguments) for arguments in before)
        return NetworkState(current, hidden, frame.non_finite)

    def _write(self, state: NetworkState[H], planes: Sequence[Tensor]) -> None:
        pairs = zip(state.hidden, self._tiles.cut(state.frame), strict=True)
        self._tiles.write([partial(self._render, hidden, frame) for hidden, frame in pairs], planes)

    def size(self, state: NetworkState[H]) -> int:
        """See `RecurrentModel.size`."""
        return state.frame.nbytes + sum(hidden.nbytes for hidden in state.hidden)
