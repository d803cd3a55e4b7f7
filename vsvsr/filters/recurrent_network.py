"""A recurrent network as the streaming engine wants it: planes in, planes out, one state per spatial tile."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from vsvsr.filters.tiling import TileGrid, write_frame
from vsvsr.frames import Planes, read


class Network(Protocol):
    """What a unidirectional recurrent network offers; frames ``(1, 3, h, w)``, states ``(1, c, h, w)``."""

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

    def step(self, state: NetworkState | None, frame: Planes) -> NetworkState:
        """See `RecurrentModel.step`."""
        current = self._tiles.pad(read(frame, self._device, self._dtype)).contiguous(memory_format=torch.channels_last)
        parts = self._tiles.cut(current)
        if state is None:
            return NetworkState(current, tuple(self._network.propagate(part, None, None) for part in parts))
        before = zip(parts, self._tiles.cut(state.frame), state.hidden, strict=True)
        return NetworkState(current, tuple(self._network.propagate(*arguments) for arguments in before))

    def render(self, state: NetworkState, output: Planes) -> None:
        """See `RecurrentModel.render`."""
        pairs = zip(state.hidden, self._tiles.cut(state.frame), strict=True)
        parts = [partial(self._network.render, hidden, frame) for hidden, frame in pairs]
        write_frame(partial(self._tiles.write, parts), output.views(), self._device)

    def size(self, state: NetworkState) -> int:
        """See `RecurrentModel.size`."""
        return sum(tensor.nbytes for tensor in (state.frame, *state.hidden))
