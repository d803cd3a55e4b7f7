"""What an attack has come to."""

import threading
import time
from collections import Counter
from pathlib import Path


class DifferenceError(AssertionError):
    """A filter gave what it must not give."""


class Tally:
    """Counts by what was counted, from any thread."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.notes: dict[str, tuple[float, str]] = {}
        self._lock = threading.Lock()
        self._begun = time.monotonic()

    def add(self, what: str, number: int = 1) -> None:
        """Count."""
        with self._lock:
            self.counts[what] += number

    def largest(self, what: str, value: float, which: str) -> None:
        """Remember the largest value and what had it."""
        with self._lock:
            self.notes[what] = max(self.notes.get(what, (0.0, "")), (value, which))

    def lines(self) -> list[str]:
        """The report."""
        seconds = time.monotonic() - self._begun
        listed = [f"{number:>10,} {what}" for what, number in sorted(self.counts.items())]
        listed += [f"{value:>10.4g} {what}: {which}" for what, (value, which) in sorted(self.notes.items())]
        listed.append(f"{memory('VmHWM') / 1e6:>10,.0f} MB, largest memory; {memory('VmRSS') / 1e6:,.0f} MB now")
        return [*listed, f"{seconds:>10,.0f} s, {time.process_time():,.0f} s of the processor"]


def memory(name: str) -> int:
    """Bytes, by the name in ``/proc/self/status``; 0 where Linux does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
