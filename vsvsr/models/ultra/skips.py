"""Buffered skip connections."""

from torch import Tensor

from vsvsr.models.common.offload import Buffered, OffloadBuffer


class Skips:
    """Skip connections of some frames on their way from the down to the up path: a stack.

    Args:
        buffer: where they wait.
        prompt: text embedding of these frames, where they have another than the clip.
    """

    def __init__(self, buffer: OffloadBuffer | None = None, prompt: Tensor | None = None) -> None:
        self.prompt = prompt
        self._buffer = buffer or OffloadBuffer()
        self._stack: list[Buffered] = []

    def push(self, tensor: Tensor) -> None:
        self._stack.append(self._buffer.put(tensor))

    def pop(self) -> Tensor:
        return self._buffer.take(self._stack.pop())

    def top_size(self) -> tuple[int, int]:
        """Height and width of what the next ``pop`` gives."""
        height, width = self._stack[-1].tensor.shape[-2:]
        return height, width

    @property
    def nbytes(self) -> int:
        return sum(buffered.tensor.nbytes for buffered in self._stack)
