"""Sources some frames of which fail, always, sometimes or at first.

What must hold, whatever is asked for in whatever order: every error is the source's own, about a frame that the request
may need; a frame that needs none of those that fail is had, and is the clean clip's; a frame that is had while others
fail is that of a clip with cuts around some of these; once frames come again, nothing is left of their failures. What
the second of two filters makes of frames that fail only now and then is not compared: the first gives it frames from
before and after.
"""

import random
import re
import threading
from concurrent.futures import Future
from itertools import chain, combinations

import vapoursynth as vs

from tests.attack.orders import order
from tests.attack.setups import FRAMES, PATIENCE, Pool, Setup
from tests.attack.tally import DifferenceError, Tally
from tests.pixels import digest

REQUESTS = 150
TRIES = 8
"""How often a frame may have to be asked for until the filter knows which frames fail, or come again."""


class FailingSource:
    """A clip some frames of which fail.

    Args:
        clip: that it gives otherwise.
        kinds: the frames that fail and how: ``always``, ``sometimes``, or for the first so many requests.
        rng: decides for ``sometimes``.
        tally: counts the failures.
    """

    def __init__(self, clip: vs.VideoNode, kinds: dict[int, str | int], rng: random.Random, tally: Tally) -> None:
        self.kinds = dict(kinds)
        self._clip, self._rng, self._tally = clip, rng, tally
        self._lock = threading.Lock()
        self.node = clip.std.FrameEval(self._give)

    def heal(self, *, but: str = "") -> None:
        """From now on all frames come, except those of the kind ``but``."""
        with self._lock:
            self.kinds = {n: kind for n, kind in self.kinds.items() if kind == but}

    def _give(self, n: int) -> vs.VideoNode:
        with self._lock:
            if self._fails(n):
                self._tally.add("failures injected")
                raise RuntimeError(f"frame {n} is unreadable")
        return self._clip

    def _fails(self, n: int) -> bool:
        kind = self.kinds.get(n, 0)
        if isinstance(kind, int):
            self.kinds[n] = kind - 1
            return kind > 0
        return kind == "always" or self._rng.random() < 0.5


def attack(pool: Pool, rng: random.Random, tally: Tally) -> None:
    """One round: a source that fails, then one that fails in some frames always, then one that is sound."""
    vs.core.core.num_threads = rng.choice((1, 2, 4, 8))
    setup = pool.draw(rng, sure=True)
    chosen = rng.sample(range(FRAMES), rng.choice((1, 1, 2)))
    kinds = {n: rng.choice(("always", "always", "sometimes", 1, 2, 4)) for n in chosen}
    source = FailingSource(pool.clip(setup.size, setup.cuts), kinds, random.Random(rng.random()), tally)
    output = pool.open(setup, source.node)
    broken = {n for n, kind in kinds.items() if kind == "always"}
    doubtful = set(kinds) - broken
    some = [{*broken, *more} for more in powerset(doubtful)]
    if len(setup.stages) > 1 and doubtful:
        some = []  # the first filter may change its mind between two frames that the second takes

    numbers = order(rng)
    in_flight = rng.choice((1, 2, 4, 8, 16))
    waiting: list[tuple[int, Future[vs.VideoFrame]]] = []
    for _ in range(REQUESTS):
        n = next(numbers)
        waiting.append((n, output.get_frame_async(n)))
        while len(waiting) >= in_flight:
            n, future = waiting.pop(0)
            _judge(pool, setup, n, _result(future), failing=set(kinds), absent=some, tally=tally)
    for n, future in waiting:
        _judge(pool, setup, n, _result(future), failing=set(kinds), absent=some, tally=tally)

    source.heal(but="always")
    _settle(output)
    for n in range(FRAMES):
        failing = broken & {n}
        _judge(pool, setup, n, _result(output.get_frame_async(n)), failing=failing, absent=[broken], tally=tally)
    source.heal()
    _settle(output)
    for n in chain(range(FRAMES), (next(numbers) for _ in range(FRAMES))):
        _judge(pool, setup, n, _result(output.get_frame_async(n)), failing=set(), absent=[set()], tally=tally)


def powerset(numbers: set[int]) -> list[tuple[int, ...]]:
    """All subsets."""
    ordered = sorted(numbers)
    return [subset for size in range(len(ordered) + 1) for subset in combinations(ordered, size)]


def _result(future: Future[vs.VideoFrame]) -> tuple[str, str]:
    """Digest and message, one of them empty."""
    try:
        with future.result(timeout=PATIENCE) as frame:
            return digest(frame), ""
    except vs.Error as error:
        return "", str(error)


def _settle(output: vs.VideoNode) -> None:
    """Ask for every frame until it comes, but not for ever."""
    for n in range(FRAMES):
        for _ in range(TRIES):
            if _result(output.get_frame_async(n))[0]:
                break


def _judge(
    pool: Pool,
    setup: Setup,
    n: int,
    result: tuple[str, str],
    *,
    failing: set[int],
    absent: list[set[int]],
    tally: Tally,
) -> None:
    """Look at what a request came to.

    Args:
        pool: has the references.
        setup: the filters.
        n: the frame.
        result: its digest, or the message of its failure.
        failing: the source frames that may have failed it.
        absent: the source frames that the filter may have counted as absent; none: no reference has what it may have
            seen, unless no frame that failed is in its reach.
        tally: counts.

    Raises:
        DifferenceError: the frame, or the message, is one that must not be.
    """
    fresh, message = result
    if message:
        named = re.findall(r"frame (\d+) is unreadable", message)
        if not named or int(named[-1]) not in failing & setup.reach(n):
            raise DifferenceError(f"frame {n} of {setup}, where {sorted(failing)} fail: {message}")
        tally.add("requests that failed with the source's message")
        return
    if not absent and failing & setup.reach(n):
        return
    for gaps in absent or [set()]:
        around = {cut for gap in gaps & setup.reach(n) for cut in (gap, gap + 1) if 0 < cut < FRAMES}
        cuts = tuple(sorted({*setup.cuts, *around}))
        if fresh == pool.reference(Setup(setup.size, cuts, setup.stages))[n]:
            tally.add("outputs compared")
            tally.add("outputs compared, beside failures")
            return
    raise DifferenceError(f"frame {n} of {setup} is that of no clip without {absent}")
