"""Where tensors wait for the frames around theirs: on the device up to a budget, in host memory beyond it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shelved:
    """A waiting tensor; on the host when ``home`` differs from where it lies."""

    tensor: Tensor
    home: torch.device
    counted: int


class Shelf:
    """Counts what waits on the device and keeps it within a budget.

    Args:
        budget: bytes that may wait on the device, besides what :meth:`keep` counts; None for no limit.

    Attributes:
        held: bytes waiting on the device now.
        peak: the most there have been.
        offloaded: bytes moved to the host so far.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self.held = 0
        self.peak = 0
        self.offloaded = 0
        self._movable = 0

    def put(self, tensor: Tensor) -> Shelved:
        """Let a tensor wait."""
        home = tensor.device
        if self.budget is not None and self._movable + tensor.nbytes > self.budget:
            self.offloaded += tensor.nbytes
            return Shelved(tensor.cpu(), home, 0)
        self._movable += tensor.nbytes
        self.keep(tensor)
        return Shelved(tensor, home, tensor.nbytes)

    def take(self, shelved: Shelved) -> Tensor:
        """The tensor, back on its device."""
        self._movable -= shelved.counted
        self.held -= shelved.counted
        return shelved.tensor.to(shelved.home)

    def keep(self, tensor: Tensor) -> Tensor:
        """Count a small tensor that stays on the device, until ``drop``."""
        self.held += tensor.nbytes
        self.peak = max(self.peak, self.held)
        return tensor

    def drop(self, tensor: Tensor) -> None:
        """The end of ``keep``."""
        self.held -= tensor.nbytes


class Skips:
    """Skip connections of some frames on their way from the down to the up path: a stack."""

    def __init__(self, shelf: Shelf | None = None) -> None:
        self._shelf = shelf or Shelf()
        self._stack: list[Shelved] = []

    def push(self, tensor: Tensor) -> None:
        self._stack.append(self._shelf.put(tensor))

    def pop(self) -> Tensor:
        return self._shelf.take(self._stack.pop())

    def top_size(self) -> tuple[int, int]:
        """Height and width of what the next ``pop`` gives."""
        height, width = self._stack[-1].tensor.shape[-2:]
        return height, width

    @property
    def nbytes(self) -> int:
        return sum(shelved.tensor.nbytes for shelved in self._stack)
