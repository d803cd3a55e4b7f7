"""Frames between the host's planes and the device that computes."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vsvsr.engine.planes import Frame, Output, Planes, read
from vsvsr.models.common import Write
from vsvsr.ops.unpack_planes import unpack_planes


class Transfer(Protocol):
    """Brings frames to the device and pictures back."""

    def read(self, planes: Planes) -> Frame:
        """The frame on the device, in memory of its own."""
        ...

    def write(self, write: Write, output: Output, non_finite: Tensor) -> None:
        """Have ``write`` make a picture: it is in the host's planes afterwards, or ``output`` says how it gets there.

        Args:
            write: makes it.
            output: where it goes.
            non_finite: see `Frame`.
        """
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

    def write(self, write: Write, output: Output, non_finite: Tensor) -> None:
        """See `Transfer.write`."""
        write(output.planes.views())
        output.non_finite = bool(non_finite)


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

    def write(self, write: Write, output: Output, non_finite: Tensor) -> None:
        """See `Transfer.write`."""
        planes = output.planes
        size = (len(planes.places), planes.height, planes.width)
        picture = torch.empty(size, dtype=planes.dtype, device=self._device)
        write(picture.unbind())
        for plane, channel in zip(planes.views(), picture, strict=True):
            plane.copy_(channel)
        output.non_finite = bool(non_finite)


class Event(Protocol):
    """A point in a stream's work."""

    def synchronize(self) -> None:
        """Block until the work before it is done; on any thread."""
        ...


class Copies(Protocol):
    """A stream for copies in one direction."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Queue a copy."""
        ...

    def queued(self) -> Event:
        """Behind all copies queued so far."""
        ...

    def wait(self, event: Event) -> None:
        """Copies queued from here on begin after ``event``."""
        ...


class Streams(Protocol):
    """A device with one stream for computing, torch's current one, and one for copies in each direction: in a single
    one, a frame would wait for the picture before it, which waits for its computing.
    """

    @property
    def uploads(self) -> Copies:
        """To the device."""
        ...

    @property
    def downloads(self) -> Copies:
        """From the device."""
        ...

    def host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Pinned memory of the host."""
        ...

    def device(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the device."""
        ...

    def computed(self) -> Event:
        """Behind all work queued for computing so far."""
        ...

    def compute_waits(self, event: Event) -> None:
        """Work queued for computing from here on begins after ``event``."""
        ...


class CudaCopies:
    """`Copies` of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, target: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def queued(self) -> Event:
        return _event(self._stream)

    def wait(self, event: Event) -> None:
        assert isinstance(event, torch.cuda.Event)
        self._stream.wait_event(event)


class CudaStreams:
    """`Streams` of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.uploads = CudaCopies(device)
        self.downloads = CudaCopies(device)

    def host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def device(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self._device)

    def computed(self) -> Event:
        return _event(torch.cuda.current_stream(self._device))

    def compute_waits(self, event: Event) -> None:
        assert isinstance(event, torch.cuda.Event)
        torch.cuda.current_stream(self._device).wait_event(event)


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


@dataclass(slots=True)
class _Canvas:
    """Where a picture is made.

    Attributes:
        device: ``(3, h, pitch)`` on the device.
        left: when it may be written again.
    """

    device: Tensor
    left: Event | None = None


@dataclass(slots=True)
class _Place:
    """Where a picture arrives; pinned.

    Attributes:
        host: ``(3, h, pitch)``.
        non_finite: bool of one element.
    """

    host: Tensor
    non_finite: Tensor


class _Picture:
    """An `Arrival` in a place that others wait for.

    Args:
        place: where it arrives.
        crossed: when each plane has, and behind them ``non_finite``.
        source: on the device; kept until it has been read.
        free: takes the place when it is no longer needed.
    """

    def __init__(self, place: _Place, crossed: Sequence[Event], source: Tensor, free: deque[_Place]) -> None:
        self._lock = threading.Lock()
        self._place: _Place | None = place
        self._crossed = crossed
        self._source: Tensor | None = source
        self._free = free

    def collect(self, planes: Planes) -> bool:
        """See `Arrival.collect`."""
        with self._lock:
            place = self._place
            assert place is not None
            try:
                for event, channel, plane in zip(self._crossed, place.host, planes.views(), strict=False):
                    event.synchronize()
                    # Not by torch, which would start a team of threads here: NumPy copies on this one.
                    np.copyto(plane.numpy(), channel[:, : planes.width].numpy())
                self._crossed[-1].synchronize()
                return bool(place.non_finite)
            finally:
                self._leave()

    @property
    def waits(self) -> bool:
        """Whether it needs its place."""
        return self._place is not None

    def set_aside(self) -> None:
        """Leave the place for memory that is not pinned, if the picture has not been collected."""
        with self._lock:
            place = self._place
            if place is None:
                return
            self._crossed[-1].synchronize()
            kept = _Place(place.host.clone(), place.non_finite.clone())
            self._leave()
            self._place, self._free = kept, deque()

    def _leave(self) -> None:
        assert self._place is not None
        self._free.append(self._place)
        self._place = self._source = None


PLACES = 3
"""Pictures on their way at most: one is computed, one crosses, one is copied to where the host wants it."""


class StagedTransfer:
    """For networks on a GPU: rows are copied into pinned memory as they lie, cross over on their own, and are unpacked
    there. Nothing waits for an upload but the computation that needs it.

    On the way back the network's last operation writes with the host's stride and type, so the GPU has nothing to pack;
    plane by plane, one crosses while the one before is copied to its place. Who wants the picture waits for it, on a
    thread of its own, while the next ones are computed and cross.

    The memory is allocated once for each size and type of planes. A picture that nobody has collected when its pinned
    memory is needed is set aside, so the device's thread waits for the device at most.

    Args:
        streams: of the device.
        dtype: what the network computes in.
    """

    def __init__(self, streams: Streams, dtype: torch.dtype) -> None:
        self._streams = streams
        self._dtype = dtype
        self._slots: list[_Slot] = []
        self._shape: tuple[object, ...] = ()
        self._canvases: deque[_Canvas] = deque()
        self._free: deque[_Place] = deque()
        self._under_way: deque[_Picture] = deque()

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
        uploads = self._streams.uploads
        uploads.wait(slot.unpacked)
        uploads.copy(slot.device, slot.host)
        slot.uploaded = uploads.queued()
        self._streams.compute_waits(slot.uploaded)
        pixels, non_finite = unpack_planes(slot.device, planes.width, self._dtype)
        slot.unpacked = self._streams.computed()
        return Frame(pixels, non_finite)

    def _slot(self, shape: Sequence[int], dtype: torch.dtype) -> _Slot:
        host, device = self._streams.host(shape, dtype), self._streams.device(shape, dtype)
        return _Slot(host, device, unpacked=self._streams.computed())

    def write(self, write: Write, output: Output, non_finite: Tensor) -> None:
        """See `Transfer.write`."""
        planes = output.planes
        self._prepare((len(planes.places), planes.height, planes.pitch), planes.dtype)
        canvas = self._canvases[0]
        self._canvases.rotate(-1)
        if canvas.left is not None:
            self._streams.compute_waits(canvas.left)
        write([channel[:, : planes.width] for channel in canvas.device])
        place = self._vacant()
        downloads = self._streams.downloads
        downloads.wait(self._streams.computed())
        crossed = []
        for target, channel in zip(place.host, canvas.device, strict=True):
            downloads.copy(target, channel)
            crossed.append(downloads.queued())
        canvas.left = crossed[-1]
        downloads.copy(place.non_finite, non_finite)
        crossed.append(downloads.queued())
        picture = _Picture(place, crossed, non_finite, self._free)
        self._under_way.append(picture)
        output.arrival = picture

    def _prepare(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Have memory for pictures of this shape and type."""
        if self._shape == (shape, dtype):
            return
        # Two canvases: one is painted while the other crosses. Those before are left to the pictures in them.
        canvases = deque(_Canvas(self._streams.device(shape, dtype)) for _ in range(2))
        flag = (1,), torch.bool
        places = (_Place(self._streams.host(shape, dtype), self._streams.host(*flag)) for _ in range(PLACES))
        self._free, self._under_way = deque(places), deque()
        self._canvases, self._shape = canvases, (shape, dtype)

    def _vacant(self) -> _Place:
        """A place; the oldest picture leaves its own if there is no other."""
        while not self._free:
            self._under_way.popleft().set_aside()
        self._under_way = deque(picture for picture in self._under_way if picture.waits)
        return self._free.popleft()


def transfer(device: torch.device, dtype: torch.dtype) -> Transfer:
    """The way to ``device`` for a network that computes in ``dtype``."""
    if device.type == "cpu":
        return HostTransfer(dtype)
    return StagedTransfer(CudaStreams(device), dtype) if device.type == "cuda" else PlainTransfer(device, dtype)
