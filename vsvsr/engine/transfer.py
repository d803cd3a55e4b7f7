"""Frames between the host's planes and the device that computes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vsvsr.engine.planes import Frame, Planes, read
from vsvsr.models.common import Write
from vsvsr.ops.unpack_planes import unpack_planes


class Transfer(Protocol):
    """Brings frames to the device and pictures back."""

    def read(self, planes: Planes) -> Frame:
        """The frame on the device, in memory of its own."""
        ...

    def write(self, write: Write, planes: Planes) -> None:
        """Have ``write`` make a picture, and wait until it is in the host's planes."""
        ...


class HostTransfer:
    """For networks on the CPU: the last operation writes straight into the planes.

    Args:
        dtype: what the network computes in.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def read(self, planes: Planes) -> Frame:
        """See `Transfer.read`."""
        return read(planes, torch.device("cpu"), self._dtype)

    def write(self, write: Write, planes: Planes) -> None:
        """See `Transfer.write`."""
        write(planes.views())


class PlainTransfer:
    """For networks on a device of which nothing is known but that torch copies to it and from it.

    Args:
        device: that one.
        dtype: what the network computes in.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype

    def read(self, planes: Planes) -> Frame:
        """See `Transfer.read`."""
        return read(planes, self._device, self._dtype)

    def write(self, write: Write, planes: Planes) -> None:
        """See `Transfer.write`."""
        size = (len(planes.places), planes.height, planes.width)
        picture = torch.empty(size, dtype=planes.dtype, device=self._device)
        write(picture.unbind())
        for plane, channel in zip(planes.views(), picture, strict=True):
            plane.copy_(channel)


class Event(Protocol):
    """A point in a stream's work."""

    def synchronize(self) -> None:
        """Block until the work before it is done."""
        ...


class Streams(Protocol):
    """A device with one stream for computing, torch's current one, and one for copies."""

    def host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Pinned memory of the host."""
        ...

    def device(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the device."""
        ...

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Queue a copy on the stream for copies."""
        ...

    def copied(self) -> Event:
        """Behind all copies queued so far."""
        ...

    def computed(self) -> Event:
        """Behind all work queued for computing so far."""
        ...

    def copies_wait(self, event: Event) -> None:
        """Copies queued from here on begin after ``event``."""
        ...

    def compute_waits(self, event: Event) -> None:
        """Work queued for computing from here on begins after ``event``."""
        ...


class CudaStreams:
    """`Streams` of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def device(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self._device)

    def copy(self, target: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)

    def copied(self) -> Event:
        return self._event(self._copies)

    def computed(self) -> Event:
        return self._event(torch.cuda.current_stream(self._device))

    def copies_wait(self, event: Event) -> None:
        assert isinstance(event, torch.cuda.Event)
        self._copies.wait_event(event)

    def compute_waits(self, event: Event) -> None:
        assert isinstance(event, torch.cuda.Event)
        torch.cuda.current_stream(self._device).wait_event(event)

    @staticmethod
    def _event(stream: torch.cuda.Stream) -> torch.cuda.Event:
        # Blocking: the thread sleeps instead of burning a core.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event


@dataclass(slots=True)
class _Slot:
    """One frame on its way to the device.

    Attributes:
        host: pinned, ``(3, h, pitch)``.
        device: likewise on the device.
        unpacked: when ``device`` may be written again; at first, when who had that memory before is done with it.
        uploaded: when ``host`` may be written again.
    """

    host: Tensor
    device: Tensor
    unpacked: Event
    uploaded: Event | None = None


class StagedTransfer:
    """For networks on a GPU: rows are copied into pinned memory as they lie, cross over on their own, and are unpacked
    there. Nothing waits for an upload but the computation that needs it.

    On the way back the network's last operation writes with the host's stride and type, so the GPU has nothing to pack;
    plane by plane, one crosses while the one before is copied to its place.

    The memory is allocated once for each size and type of planes.

    Args:
        streams: of the device.
        dtype: what the network computes in.
    """

    def __init__(self, streams: Streams, dtype: torch.dtype) -> None:
        self._streams = streams
        self._dtype = dtype
        self._slots: list[_Slot] = []
        self._picture: tuple[Tensor, Tensor] | None = None

    def read(self, planes: Planes) -> Frame:
        """See `Transfer.read`."""
        shape = (len(planes.places), planes.height, planes.pitch)
        if not self._slots or self._slots[0].host.shape != shape:
            # Two: one is filled while the other crosses.
            self._slots = [self._slot(shape, planes.dtype) for _ in range(2)]
        slot = self._slots.pop(0)
        self._slots.append(slot)
        if slot.uploaded is not None:
            slot.uploaded.synchronize()
        for target, rows in zip(slot.host, planes.rows(), strict=True):
            target.flatten()[: len(rows)].copy_(rows)
        self._streams.copies_wait(slot.unpacked)
        self._streams.copy(slot.device, slot.host)
        slot.uploaded = self._streams.copied()
        self._streams.compute_waits(slot.uploaded)
        pixels, non_finite = unpack_planes(slot.device, planes.width, self._dtype)
        slot.unpacked = self._streams.computed()
        return Frame(pixels, non_finite)

    def _slot(self, shape: Sequence[int], dtype: torch.dtype) -> _Slot:
        host, device = self._streams.host(shape, dtype), self._streams.device(shape, dtype)
        return _Slot(host, device, unpacked=self._streams.computed())

    def write(self, write: Write, planes: Planes) -> None:
        """See `Transfer.write`."""
        shape = (len(planes.places), planes.height, planes.pitch)
        if self._picture is None or self._picture[0].shape != shape:
            self._picture = self._streams.host(shape, planes.dtype), self._streams.device(shape, planes.dtype)
        host, device = self._picture
        write([channel[:, : planes.width] for channel in device])
        self._streams.copies_wait(self._streams.computed())
        crossed = []
        for target, channel in zip(host, device, strict=True):
            self._streams.copy(target, channel)
            crossed.append(self._streams.copied())
        for event, channel, plane in zip(crossed, host, planes.views(), strict=True):
            event.synchronize()
            plane.copy_(channel[:, : planes.width])


def transfer(device: torch.device, dtype: torch.dtype) -> Transfer:
    """The way to ``device`` for a network that computes in ``dtype``."""
    if device.type == "cpu":
        return HostTransfer(dtype)
    return StagedTransfer(CudaStreams(device), dtype) if device.type == "cuda" else PlainTransfer(device, dtype)
