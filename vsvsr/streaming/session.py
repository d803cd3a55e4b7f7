"""What the bridge asks of every session."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

# Sources are asked for in small groups: few rounds, and few frames in memory at once.
REQUEST_GROUP = 8


@dataclass(frozen=True, slots=True)
class Source[Frame]:
    """One frame of the clip.

    Attributes:
        frame: the picture, opaque here; None where the clip cannot give it.
        cut: whether a scene starts with this frame.
        approximate: whether a preview made it, before this filter.
    """

    frame: Frame | None
    cut: bool = False
    approximate: bool = False


class CutDetector[Frame](Protocol):
    """Finds cuts that nothing marks: a pure function of two neighbouring frames."""

    def look(self, frame: Frame) -> Any:
        """What has to be kept of a frame; small."""
        ...

    def is_cut(self, before: Any, after: Any) -> bool:
        """Whether a scene starts with the later one of two neighbours, both as ``look`` gives them."""
        ...


class Session[Frame, Output](Protocol):
    """Makes the frames of one filter, one request at a time.

    A request for frame ``n`` is a series of ``advance`` calls until nothing is missing, then one ``render``.
    """

    def advance(self, n: int, wanted: Collection[int], sources: Mapping[int, Source[Frame]]) -> list[int]:
        """Move towards frame ``n`` as far as ``sources`` allow.

        Args:
            n: the frame that is asked for.
            wanted: all frames that were asked for and not delivered yet, ``n`` among them.
            sources: the clip's frames at hand by number; ``n`` itself can be had.

        Returns:
            Numbers of the frames needed for the next call; empty when ``render`` can be called.
        """
        ...

    def render(self, n: int, output: Output) -> bool:
        """Write frame ``n``. Returns whether it is approximate: made by a preview, or from frames that one made."""
        ...

    def forget(self) -> None:
        """Drop everything that was derived from frames of the clip: it may give others now."""
        ...

    def shrink(self) -> None:
        """Memory runs short: forget what only makes seeks faster."""
        ...

    def counters(self) -> dict[str, int]:
        """What has been done so far."""
        ...
