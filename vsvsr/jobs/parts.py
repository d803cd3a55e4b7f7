"""How a film is divided."""

from collections.abc import Sequence
from dataclasses import dataclass

SHORTEST_SECONDS = 5.0
"""What a part lasts at least: starting an encoder takes time, and each part begins with a key frame."""


@dataclass(frozen=True, order=True)
class Part:
    """Frames ``first`` to ``last`` of a film, without ``last``."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def __str__(self) -> str:
        return f"frames {self.first} to {self.last - 1}"


def divide(starts: Sequence[int], last: int, timestamps: Sequence[int]) -> list[Part]:
    """Parts that begin at some of ``starts`` and last ``SHORTEST_SECONDS`` at least; all, if there is only one.

    Args:
        starts: first frame of the film, and further ones at which the filter starts afresh.
        last: frame to stop before.
        timestamps: when each frame begins, in nanoseconds, ``last`` included.
    """
    shortest = round(SHORTEST_SECONDS * 1e9)
    chosen = [starts[0]]
    for start in starts[1:]:
        lasts = timestamps[start] - timestamps[chosen[-1]]
        if lasts >= shortest and timestamps[last] - timestamps[start] >= shortest:
            chosen.append(start)
    return [Part(first, stop) for first, stop in zip(chosen, [*chosen[1:], last], strict=True)]
