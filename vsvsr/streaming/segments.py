"""Where a recurrence starts cold: a function of the frame number alone."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Segments:
    """A fixed grid of segments with a warm-up before each.

    Attributes:
        length: frames in a segment; 0 makes the whole clip one segment.
        warmup: frames before a segment over which the state is rolled up, their pictures thrown away.
    """

    length: int
    warmup: int

    def start(self, n: int) -> int:
        """First frame of the segment that holds frame ``n``."""
        return n - n % self.length if self.length else 0

    def origin(self, n: int) -> int:
        """Frame at which the recurrence that leads to frame ``n`` starts cold, if no cut comes later."""
        return max(self.start(n) - self.warmup, 0)

    def starts(self, first: int, last: int) -> list[int]:
        """``first``, and every start of a segment behind it and before ``last``: where work on a clip can be divided
        and no frame is seen more often than when it is played through.
        """
        return [first, *range(self.start(first) + self.length, last, self.length)] if self.length else [first]
