"""Work recorded as CUDA graphs: one launch in place of hundreds, with algorithms and memory that stay what they were.

A library that finds little memory in the middle of a film takes another algorithm, which rounds differently. A graph
allocates nothing when it is replayed.
"""

import contextlib
import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vsvsr.engine.memory import capturing, is_out_of_memory, release

type Capture = Callable[[Callable[[], object]], Callable[[], None]]
"""Records what a function queues; gives what queues it again, on the memory that it used while recorded."""

type Queue = Callable[..., Tensor]
"""Takes a result or None, and inputs. Queues work, the same for inputs of the same sizes, and never waits for the
device. Gives the result: the one it was given, written to, else memory of its own."""

_log = logging.getLogger(__name__)


def copied(function: Callable[..., Tensor]) -> Queue:
    """A `Queue` of a function whose results have memory of their own."""

    def queue(result: Tensor | None, *inputs: Tensor) -> Tensor:
        made = function(*inputs)
        return made if result is None else result.copy_(made)

    return queue


class CudaCapture:
    """`Capture` on a CUDA device, on one stream and in one pool of memory for everything that is recorded.

    So only one recording may be replayed at a time, and nothing in the pool outlives a replay.

    Args:
        device: the current one wherever something is recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Without one of its own torch takes a stream of the first device on which this process recorded anything.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], object]) -> Callable[[], None]:
        function()  # libraries choose their algorithms and kernels are compiled before
        torch.cuda.synchronize(self._device)
        release(self._device)
        graph = torch.cuda.CUDAGraph()
        with capturing(), torch.cuda.stream(self._stream):
            # Other threads may use the device meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                function()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # what it has to say is less than the error itself
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph.replay


class Recorder:
    """Functions that are recorded at their first call for each size and type of inputs.

    All of them share their buffers, which have the size of the largest: call them for the largest inputs first, and
    take a result away before the next call.

    Where something cannot be recorded, the function itself runs from then on and always, so that every frame of a
    filter is made in the same way. Memory that runs out while recording is an error.

    Args:
        capture: records.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def __call__(self, function: Queue) -> Callable[..., Tensor]:
        """``function`` of its inputs; its result is valid until the next call of anything of this recorder."""
        recorded: dict[tuple[object, ...], Callable[..., Tensor]] = {}

        def call(*inputs: Tensor) -> Tensor:
            key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
            if key not in recorded:
                recorded[key] = self._record(function, inputs)
            return recorded[key](*inputs)

        return call

    def _record(self, function: Queue, inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        places = [self._buffer(f"input {i}", tensor) for i, tensor in enumerate(inputs)]
        for place, tensor in zip(places, inputs, strict=True):
            place.copy_(tensor)
        result = self._buffer("result", function(None, *places))
        try:
            replay = self._capture(partial(function, result, *places))
        except RuntimeError as error:  # torch raises this for whatever CUDA objects to
            if is_out_of_memory(error):
                raise
            _log.warning("the network runs without a CUDA graph: %s", " ".join(str(error).split()))
            return partial(function, None)

        def again(*inputs: Tensor) -> Tensor:
            for place, tensor in zip(places, inputs, strict=True):
                place.copy_(tensor)
            replay()
            return result

        return again

    def _buffer(self, role: str, like: Tensor) -> Tensor:
        """A tensor of the size and layout of ``like`` in the memory for that role."""
        layout = torch.empty_like(like, device="meta")
        key = role, like.dtype
        if key not in self._buffers or self._buffers[key].numel() < like.numel():
            self._buffers[key] = like.new_empty(like.numel())
        return self._buffers[key].as_strided(layout.shape, layout.stride())
