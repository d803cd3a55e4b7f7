"""Buffer for features that are needed again later: on the device up to a budget, in host memory beyond it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Buffered:
    """A buffered tensor.

    Attributes:
        tensor: on its device or on the host.
        device: where it is needed.
        counted: its bytes, where they count towards the budget.
    """

    tensor: Tensor
    device: torch.device
    counted: int


class OffloadBuffer:
    """Counts the buffered bytes on the device and keeps them within a budget.

    Args:
        budget: bytes that may be buffered on the device, besides what :meth:`keep` counts; None for no limit.

    Attributes:
        held: bytes buffered on the device now.
        peak: the most there have been.
        offloaded: bytes moved to the host so far.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self.held = 0
        self.peak = 0
        self.offloaded = 0
        self._movable = 0

    def put(self, tensor: Tensor) -> Buffered:
        """Buffer a tensor."""
        if self.budget is not None and self._movable + tensor.nbytes > self.budget:
            self.offloaded += tensor.nbytes
            return Buffered(tensor.cpu(), tensor.device, 0)
        self._movable += tensor.nbytes
        self.keep(tensor)
        return Buffered(tensor, tensor.device, tensor.nbytes)

    def take(self, buffered: Buffered) -> Tensor:
        """The tensor, back on its device."""
        self.discard(buffered)
        return buffered.tensor.to(buffered.device)

    def discard(self, buffered: Buffered) -> None:
        """The tensor is not needed any more."""
        self._movable -= buffered.counted
        self.held -= buffered.counted

    def keep(self, tensor: Tensor) -> Tensor:
        """Count a small tensor that stays on the device, until ``drop``."""
        self.held += tensor.nbytes
        self.peak = max(self.peak, self.held)
        return tensor

    def drop(self, tensor: Tensor) -> None:
        """The end of ``keep``."""
        self.held -= tensor.nbytes
