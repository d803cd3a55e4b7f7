"""What the bridge asks of every session."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

# Sources are asked for in small groups: few rounds, and few frames in memory at once.
REQUEST_GROUP = 8


@dataclass(frozen=True, slots=True)
class Source[Frame]:
    """One frame of the clip.

    Attributes:
        frame: the picture, opaque here.
        cut: whether a scene starts with this frame.
    """

    frame: Frame
    cut: bool = False


class Session[Frame, Output](Protocol):
    """Makes the frames of one filter, one request at a time.

    A request for frame ``n`` is a series of ``advance`` calls until nothing is missing, then one ``render``.
    """

    def advance(self, n: int, wanted: Collection[int], sources: Mapping[int, Source[Frame]]) -> list[int]:
        """Move towards frame ``n`` as far as ``sources`` allow.

        Args:
            n: the frame that is asked for.
            wanted: all frames that were asked for and not delivered yet, ``n`` among them.
            sources: the clip's frames at hand by number.

        Returns:
            Numbers of the frames needed for the next call; empty when ``render`` can be called.
        """
        ...

    def render(self, n: int, output: Output) -> bool:
        """Write frame ``n``. Returns whether it is approximate, that is, made by a preview."""
        ...

    def failed(self, frames: Sequence[int]) -> None:
        """The request was given up: one of these frames of the clip could not be had."""
        ...

    def shrink(self) -> None:
        """Memory runs short: forget what only makes seeks faster."""
        ...

    def counters(self) -> dict[str, int]:
        """What has been done so far."""
        ...
