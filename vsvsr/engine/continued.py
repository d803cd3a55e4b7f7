"""UltraVSR as the streaming engine wants it: planes in, planes out."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from vsvsr.engine.planes import Planes
from vsvsr.engine.transfer import transfer
from vsvsr.models.ultra import Restored, Upscaler


class UltraNetwork:
    """Feeds a network from VapourSynth's planes and lets it write into them.

    Args:
        device: where the network is.
        dtype: what it computes in.

    Attributes:
        upscaler: the network with its settings; set before the first chunk, when the clip's degradation is known.
    """

    upscaler: Upscaler

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._transfer = transfer(device, dtype)

    def read(self, frame: Planes) -> Tensor:
        """See `ChunkModel.read`."""
        return self._transfer.read(frame)[0].contiguous()

    def run(self, pictures: Sequence[Tensor], emit: range, first: int) -> Iterator[Restored]:
        """See `ChunkModel.run`. In playback it goes on where the last chunk ended."""
        return self.upscaler.upscale(pictures, emit, first=first)

    def render(self, result: Restored, output: Planes) -> None:
        """See `ChunkModel.render`."""
        self._transfer.write(partial(self.upscaler.render, result), output)

    def size(self, result: Restored) -> int:
        """See `ChunkModel.size`."""
        return result.picture.nbytes
