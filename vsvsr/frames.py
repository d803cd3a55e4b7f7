"""VapourSynth planes as tensors, without copies."""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Planes:
    """The three planes of one RGB frame in the host's memory.

    Attributes:
        height: rows of every plane.
        width: pixels of every row.
        dtype: torch.float32 (RGBS) or torch.float16 (RGBH).
        places: (address, stride in bytes) of each plane.
    """

    height: int
    width: int
    dtype: torch.dtype
    places: tuple[tuple[int, int], ...]

    def views(self) -> tuple[Tensor, ...]:
        """A tensor ``(height, width)`` on each plane's own memory; keep none beyond the call that gave the planes."""
        return tuple(self._view(address, stride) for address, stride in self.places)

    def _view(self, address: int, stride: int) -> Tensor:
        pitch = stride // self.dtype.itemsize
        count = pitch * (self.height - 1) + self.width
        memory = (ctypes.c_char * (count * self.dtype.itemsize)).from_address(address)
        return torch.frombuffer(memory, dtype=self.dtype, count=count).as_strided((self.height, self.width), (pitch, 1))


def read(planes: Planes, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The frame as ``(1, 3, height, width)`` on ``device``: the one copy that a state needs to outlive it."""
    frame = torch.empty((1, len(planes.places), planes.height, planes.width), dtype=dtype, device=device)
    for target, plane in zip(frame[0], planes.views(), strict=True):
        target.copy_(plane)
    return frame
