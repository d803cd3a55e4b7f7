"""The parts of an attack, and their rounds."""

import faulthandler
import random
import tempfile
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import vapoursynth as vs

from tests import hostile_files
from tests.attack import command, failures, lifetimes, orders
from tests.attack.setups import pool
from tests.attack.tally import Tally

LONGEST_ROUND = 900
"""Seconds, after which a round hangs where no time limit sees it: all threads are shown, and the process ends."""
FILES = 40

PARTS: dict[str, Callable[["Attack", random.Random], object]] = {
    "orders": lambda attack, rng: orders.attack(attack.pool, rng, attack.tally),
    "failures": lambda attack, rng: failures.attack(attack.pool, rng, attack.tally),
    "lifetimes": lambda attack, rng: lifetimes.attack(attack.pool, rng, attack.tally),
    "files": lambda attack, rng: attack.files(rng),
    "signals": lambda attack, rng: command.attack(attack.film, rng, attack.tally),
}


class Attack:
    """An attack's networks, clips and counts, as a context.

    Args:
        seed: all choices follow from it.
        tally: counts.
    """

    def __init__(self, seed: str, tally: Tally) -> None:
        self.seed, self.tally = seed, tally
        for fault in ("differences", "hangs"):
            tally.add(fault, 0)
        self._stack = ExitStack()

    def __enter__(self) -> "Attack":
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        threads = vs.core.core.num_threads
        self._stack.callback(lambda: setattr(vs.core.core, "num_threads", threads))
        self.pool = self._stack.enter_context(pool(folder, self.seed))
        self.film = command.Film(folder, self.pool.weights["FastReal"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def round(self, part: str, number: int) -> bool:
        """Play one round; shows what it found, and returns whether that was nothing."""
        rng = random.Random(f"{self.seed}/{part}/{number}")
        self.pool.variety = 10 + number // 4
        faulthandler.dump_traceback_later(LONGEST_ROUND, exit=True)
        try:
            PARTS[part](self, rng)
        except Exception as error:
            kind = "hangs" if isinstance(error, TimeoutError) else "differences"
            self.tally.add(kind)
            print(f"--seed {self.seed} --part {part} --first {number} --rounds 1", flush=True)
            traceback.print_exc()
            if kind == "hangs":
                faulthandler.dump_traceback()
            return False
        finally:
            faulthandler.cancel_dump_traceback_later()
        self.tally.add(f"rounds of {part}")
        return True

    def files(self, rng: random.Random) -> None:
        """A few hostile weights files."""
        report = hostile_files.attack(rng.randrange(10**9), FILES)
        for outcome, count in report.outcomes.items():
            self.tally.add(f"hostile files, {outcome}", count)
        self.tally.add("hostile files", FILES)
        self.tally.largest("bytes at most to load a hostile file", *report.memory)
        self.tally.largest("seconds at most to load a hostile file", *report.seconds)
