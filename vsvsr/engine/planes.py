"""VapourSynth planes as tensors, without copies."""

import ctypes
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vsvsr.ops.unpack_planes import HIGHEST, LOWEST


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

    @property
    def pitch(self) -> int:
        """Pixels from one row to the next, in every plane: VapourSynth gives planes of one size one stride."""
        return self.places[0][1] // self.dtype.itemsize

    def views(self) -> tuple[Tensor, ...]:
        """A tensor ``(height, width)`` on each plane's own memory; keep none beyond the call that gave the planes."""
        size = (self.height, self.width)
        strides = (stride // self.dtype.itemsize for _, stride in self.places)
        return tuple(rows.as_strided(size, (pitch, 1)) for rows, pitch in zip(self.rows(), strides, strict=True))

    def rows(self) -> tuple[Tensor, ...]:
        """Each plane's own memory from its first to its last pixel ``(n,)``, what lies between rows included."""
        return tuple(self._rows(address, stride // self.dtype.itemsize) for address, stride in self.places)

    def _rows(self, address: int, pitch: int) -> Tensor:
        count = pitch * (self.height - 1) + self.width
        memory = (ctypes.c_char * (count * self.dtype.itemsize)).from_address(address)
        return torch.frombuffer(memory, dtype=self.dtype, count=count)


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of the source as networks see it.

    Attributes:
        pixels: ``(1, 3, h, w)`` on the device, within `LOWEST` and `HIGHEST`, in any layout, memory of its own.
        non_finite: whether samples of the source were NaN or infinite; a bool of one element on the device.
    """

    pixels: Tensor
    non_finite: Tensor


class Arrival(Protocol):
    """A picture on its way from a device to the host."""

    def collect(self, planes: Planes) -> bool:
        """Wait for it and write it, once, on any thread. Gives what `Output` calls ``non_finite``."""
        ...


@dataclass(slots=True)
class Output:
    """Where a picture goes, and what is to be said of it.

    Attributes:
        planes: the picture's.
        non_finite: whether samples of the frame's own source were NaN or infinite; known when it has been written.
        arrival: a picture that is still on its way; None when it has been written.
    """

    planes: Planes
    non_finite: bool = False
    arrival: Arrival | None = None


def read(planes: Planes, device: torch.device, dtype: torch.dtype) -> Frame:
    """The frame on ``device``: the one copy that a state needs to outlive it.

    A sample x becomes ``min(max(x, LOWEST), HIGHEST)``, infinities too, and NaN becomes 0.
    """
    pixels = torch.empty((1, len(planes.places), planes.height, planes.width), dtype=dtype, device=device)
    for target, plane in zip(pixels[0], planes.views(), strict=True):
        target.copy_(plane)
    low, high = pixels.aminmax()  # both NaN where a sample is
    if low >= LOWEST and high <= HIGHEST:
        return Frame(pixels, torch.tensor([False], device=device))
    finite = True
    for target, plane in zip(pixels[0], planes.views(), strict=True):
        finite &= bool(plane.isfinite().all())
        target.copy_(plane.nan_to_num(0.0, HIGHEST, LOWEST).clamp_(LOWEST, HIGHEST))
    return Frame(pixels, torch.tensor([not finite], device=device))
