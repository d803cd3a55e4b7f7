"""Hidden states kept for later, within a budget."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

# A reader that is late, or runs backwards, finds the last states here; as many as lie between two checkpoints, so
# that reversed playback steps each frame once.
RECENT = 8
CHECKPOINT_INTERVAL = RECENT
# Enough for one segment of the default length at the interval; more would let memory grow with the clip.
MAX_STATES = 32 + RECENT


@dataclass(frozen=True, slots=True)
class Checkpoint[State]:
    """The recurrence after it has seen frame ``index``.

    Attributes:
        index: the last frame seen.
        origin: the frame at which the recurrence started cold.
        anchored: whether ``origin`` is a restart for every segment (a cut), not only for one segment's warm-up.
        approximate: whether a preview started it at an arbitrary frame.
        inherited: whether it has seen a frame that a preview made before this filter.
        look: what a detector of cuts keeps of frame ``index``.
        state: the model's own.
    """

    index: int
    origin: int
    anchored: bool
    approximate: bool
    inherited: bool
    look: object
    state: State


@dataclass(slots=True)
class _Entry[State]:
    checkpoint: Checkpoint[State]
    size: int
    age: int


class StateStore[State]:
    """Checkpoints by recency; older ones are thinned out as they age.

    What it holds changes how long a seek takes, never its result. The two newest checkpoints, the newest of the
    recurrence before, and those of wanted frames stay whatever the budget, so that playback always continues.

    Args:
        budget: bytes that the states may take.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._entries: dict[tuple[int, int, bool], _Entry[State]] = {}
        self._clock = 0

    def __iter__(self) -> Iterator[Checkpoint[State]]:
        return (entry.checkpoint for entry in self._entries.values())

    def add(self, checkpoint: Checkpoint[State], size: int, wanted: Collection[int]) -> None:
        """Keep ``checkpoint`` of ``size`` bytes, and drop what has become too much."""
        key = (checkpoint.origin, checkpoint.index, checkpoint.approximate)
        self._entries.pop(key, None)
        self._entries[key] = _Entry(checkpoint, size, self._clock)
        self._clock += 1
        self._trim(wanted, self._budget)

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()

    def shrink(self) -> None:
        """Drop all that playback does not need to go on."""
        self._trim((), 0)

    def _trim(self, wanted: Collection[int], budget: int) -> None:
        # Recent means recent in its own recurrence: the frames around a segment's start belong to two of them.
        rank: Counter[int] = Counter()
        for key in reversed(list(self._entries)):
            origin, index, _ = key
            rank[origin] += 1
            if rank[origin] > RECENT and index % CHECKPOINT_INTERVAL and index not in wanted:
                del self._entries[key]
        used = sum(entry.size for entry in self._entries.values())
        while used > budget or len(self._entries) > MAX_STATES:
            victim = self._least_useful(wanted)
            if victim is None:
                return
            used -= self._entries.pop(victim).size

    def _least_useful(self, wanted: Collection[int]) -> tuple[int, int, bool] | None:
        """The old entry that saves the fewest steps: small distance to the entry before it, counted against its age."""
        keys = list(self._entries)
        protected = set(keys[-2:])
        protected.update([key for key in keys if key[0] != keys[-1][0]][-1:])
        worst: tuple[float, tuple[int, int, bool]] | None = None
        previous: tuple[int, int, bool] | None = None
        for key in sorted(keys):
            saved = key[1] - previous[1] if previous is not None and previous[0] == key[0] else key[1] - key[0] + 1
            previous = key
            if key in protected or key[1] in wanted:
                continue
            worth = saved / (self._clock - self._entries[key].age)
            if worst is None or worth < worst[0]:
                worst = (worth, key)
        return worst[1] if worst else None
