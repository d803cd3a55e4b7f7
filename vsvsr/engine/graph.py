"""The recurrent step as a CUDA graph: one launch in place of hundreds."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

type Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Frame, frame before it and hidden state to the next hidden state."""

type Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Records what a function queues: gives what queues it again, and the tensor that holds its result each time."""

_log = logging.getLogger(__name__)


def capture_cuda(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """`Capture` on the current device; replays read and write the memory that ``function`` used while recorded."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # libraries choose their algorithms and kernels are compiled before
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the device meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function()
    return graph.replay, result


class _Captured:
    """A step for one size, with its static buffers."""

    def __init__(self, step: Step, capture: Capture, arguments: tuple[Tensor, ...]) -> None:
        self._inputs = frame, previous, hidden = tuple(argument.clone() for argument in arguments)
        self._replay, self._result = capture(lambda: step(frame, previous, hidden))

    def __call__(self, *arguments: Tensor) -> Tensor:
        for target, source in zip(self._inputs, arguments, strict=True):
            target.copy_(source)
        self._replay()
        return self._result.clone()


class StepGraph:
    """``step``, captured at the first call with each size of frame. States stay immutable: results are copies.

    Where it cannot be captured the step itself runs, from then on and always, so that every frame of a filter is made
    in the same way.

    Args:
        step: queues the same work for the same sizes, and never waits for the device.
        capture: records it.
    """

    def __init__(self, step: Step, capture: Capture = capture_cuda) -> None:
        self._step = step
        self._capture = capture
        self._captured: dict[torch.Size, Step] = {}

    def __call__(self, frame: Tensor, previous: Tensor, hidden: Tensor) -> Tensor:
        """The next hidden state, memory of its own."""
        size = frame.shape
        if size not in self._captured:
            try:
                self._captured[size] = _Captured(self._step, self._capture, (frame, previous, hidden))
            except RuntimeError as error:  # torch raises this for whatever CUDA objects to, memory included
                _log.warning("the step runs without a CUDA graph: %s", " ".join(str(error).split()))
                self._captured[size] = self._step
        return self._captured[size](frame, previous, hidden)
