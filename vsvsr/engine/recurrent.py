"""A recurrent network as the streaming engine wants it: planes in, planes out, one state per spatial tile."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from vsvsr.engine.graph import CudaCapture, Recorder, copied
from vsvsr.engine.planes import Frame, Output, Planes
from vsvsr.engine.tiling import TileGrid
from vsvsr.engine.transfer import transfer


class Network(Protocol):
    """What a unidirectional recurrent network offers; frames ``(1, 3, h, w)``, states ``(1, c, h, w)``."""

    @property
    def scale(self) -> int:
        """Output pixels per input pixel in each direction."""
        ...

    def propagate(self, frame: Tensor, previous: Tensor | None, hidden: Tensor | None) -> Tensor:
        """The next hidden state; from None the recurrence starts cold."""
        ...

    def render(self, hidden: Tensor, frame: Tensor, planes: Sequence[Tensor]) -> None:
        """Write the top left of the picture into three 2-D tensors."""
        ...


@dataclass(frozen=True, slots=True)
class NetworkState:
    """The recurrence after a frame.

    Attributes:
        frame: that frame, padded to what the network takes, ``(1, 3, h, w)``.
        hidden: the hidden state of every tile, ``(1, c, tile h, tile w)`` each.
        non_finite: see `Frame`.
    """

    frame: Tensor
    hidden: tuple[Tensor, ...]
    non_finite: Tensor


class RecurrentNetwork:
    """Feeds a network from VapourSynth's planes and lets it write into them.

    With tiles, each tile carries a hidden state of its own through the clip: what happens beyond its context is unknown
    to it, so the picture differs from the untiled one.

    Args:
        network: on ``device``, in ``dtype``.
        device: where it is.
        dtype: what it computes in.
        tiles: spatial tiles.
    """

    def __init__(self, network: Network, device: torch.device, dtype: torch.dtype, tiles: TileGrid) -> None:
        self._network = network
        self._device = device
        self._dtype = dtype
        self._tiles = tiles
        self._transfer = transfer(device, dtype)
        self._cold: Callable[[Tensor], Tensor] = partial(network.propagate, previous=None, hidden=None)
        self._next: Callable[[Tensor, Tensor, Tensor], Tensor] = network.propagate
        self._render: Callable[[Tensor, Tensor, Sequence[Tensor]], None] = network.render
        if device.type == "cuda":
            self._record(Recorder(CudaCapture(device)))

    def _record(self, recorder: Recorder) -> None:
        """Have each part of the work replayed. States stay immutable: they are copies."""
        network = self._network

        def draw(result: Tensor | None, hidden: Tensor, frame: Tensor) -> Tensor:
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

    def step(self, state: NetworkState | None, frame: Planes) -> NetworkState:
        """See `RecurrentModel.step`."""
        return self._step(state, self._transfer.read(frame))

    def render(self, state: NetworkState, output: Output) -> None:
        """See `RecurrentModel.render`."""
        self._transfer.write(partial(self._write, state), output.planes)
        output.non_finite = bool(state.non_finite)

    def dry_run(self, width: int, height: int) -> None:
        """Run every part once on black frames, so that out-of-memory shows at construction."""
        pixels = torch.zeros((1, 3, height, width), dtype=self._dtype, device=self._device)
        black = Frame(pixels, pixels.new_zeros(1, dtype=torch.bool))
        parts = self._tiles.cut(self._padded(pixels))
        for part in sorted(parts, key=Tensor.numel, reverse=True):  # as a recorder wants it
            hidden = self._next(part, part, self._cold(part))
            self._render(hidden, part, self._blank(part).unbind())
        state = self._step(self._step(None, black), black)
        scale = self._network.scale
        self._write(state, pixels.new_empty((3, height * scale, width * scale)).unbind())

    def _blank(self, frame: Tensor) -> Tensor:
        """Memory for the picture of a frame or tile."""
        height, width = frame.shape[-2:]
        return frame.new_empty((3, height * self._network.scale, width * self._network.scale))

    def _padded(self, pixels: Tensor) -> Tensor:
        return self._tiles.pad(pixels).contiguous(memory_format=torch.channels_last)

    def _step(self, state: NetworkState | None, frame: Frame) -> NetworkState:
        current = self._padded(frame.pixels)
        parts = self._tiles.cut(current)
        if state is None:
            hidden = tuple(map(self._cold, parts))
        else:
            before = zip(parts, self._tiles.cut(state.frame), state.hidden, strict=True)
            hidden = tuple(self._next(*arguments) for arguments in before)
        return NetworkState(current, hidden, frame.non_finite)

    def _write(self, state: NetworkState, planes: Sequence[Tensor]) -> None:
        pairs = zip(state.hidden, self._tiles.cut(state.frame), strict=True)
        self._tiles.write([partial(self._render, hidden, frame) for hidden, frame in pairs], planes)

    def size(self, state: NetworkState) -> int:
        """See `RecurrentModel.size`."""
        return sum(tensor.nbytes for tensor in (state.frame, *state.hidden))
