"""A recurrent network as the streaming engine wants it: planes in, planes out, one state per spatial tile."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr.filters.clip import Clip
from vsvsr.filters.tiling import Span, spans
from vsvsr.frames import Planes, read


class Network(Protocol):
    """What a unidirectional recurrent network offers; frames ``(1, 3, h, w)``, states ``(1, c, h, w)``."""

    @property
    def scale(self) -> int:
        """Output pixels per source pixel."""
        ...

    @property
    def min_side(self) -> int:
        """Smallest height and width of a frame."""
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
    """

    frame: Tensor
    hidden: tuple[Tensor, ...]


class RecurrentNetwork:
    """Feeds a network from VapourSynth's planes and lets it write into them.

    Frames below the network's smallest size are padded by repeating their border. With tiles, each tile carries a
    hidden state of its own through the clip: what happens beyond its context is unknown to it, so the picture
    differs from the untiled one.
    """

    def __init__(self, network: Network, device: torch.device, clip: Clip, tile: Sequence[int], tile_pad: int) -> None:
        self._network = network
        self._device = device
        self._padding = (0, max(network.min_side - clip.width, 0), 0, max(network.min_side - clip.height, 0))
        width, height = (side + pad for side, pad in zip((clip.width, clip.height), self._padding[1::2], strict=True))
        columns = spans(width, tile[0], tile_pad, network.min_side, network.scale)
        rows = spans(height, tile[1], tile_pad, network.min_side, network.scale)
        self._tiles = list(itertools.product(rows, columns))

    def step(self, state: NetworkState | None, frame: Planes) -> NetworkState:
        """See `RecurrentModel.step`."""
        current = read(frame, self._device)
        if any(self._padding):
            current = F.pad(current, self._padding, mode="replicate")
        current = current.contiguous(memory_format=torch.channels_last)
        hidden = tuple(
            self._network.propagate(
                _cut(current, rows, columns),
                _cut(state.frame, rows, columns) if state else None,
                state.hidden[index] if state else None,
            )
            for index, (rows, columns) in enumerate(self._tiles)
        )
        return NetworkState(current, hidden)

    def render(self, state: NetworkState, output: Planes) -> None:
        """See `RecurrentModel.render`."""
        planes = output.views()
        if self._device.type != "cpu":
            picture = torch.empty((3, output.height, output.width), dtype=output.dtype, device=self._device)
            self._render(state, picture.unbind())
            for plane, channel in zip(planes, picture, strict=True):
                plane.copy_(channel)
        else:
            self._render(state, planes)

    def _render(self, state: NetworkState, planes: Sequence[Tensor]) -> None:
        if len(self._tiles) == 1:
            self._network.render(state.hidden[0], state.frame, planes)
            return
        scale = self._network.scale
        for plane in planes:
            plane.zero_()
        for hidden, (rows, columns) in zip(state.hidden, self._tiles, strict=True):
            part = torch.empty((3, rows.size * scale, columns.size * scale), device=self._device)
            self._network.render(hidden, _cut(state.frame, rows, columns), part.unbind())
            part *= (rows.weight[:, None] * columns.weight).to(self._device)
            top, left = rows.start * scale, columns.start * scale
            for plane, source in zip(planes, part, strict=True):
                target = plane[top : top + source.shape[0], left : left + source.shape[1]]
                target += source[: target.shape[0], : target.shape[1]]

    def size(self, state: NetworkState) -> int:
        """See `RecurrentModel.size`."""
        return sum(tensor.nbytes for tensor in (state.frame, *state.hidden))


def _cut(frame: Tensor, rows: Span, columns: Span) -> Tensor:
    return frame[..., rows.start : rows.start + rows.size, columns.start : columns.start + columns.size]
