"""How far a film is, on a terminal and elsewhere."""

import json
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from vsvsr.errors import UserError
from vsvsr.files import explain
from vsvsr.jobs.order import Order
from vsvsr.video.film import Written

LINE_SECONDS = 15.0
"""Time between two lines of progress where there is no terminal."""


def show(console: Console, text: str) -> None:
    """One line, as it is."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


JSON_SECONDS = 0.5
"""Time between two lines about frames for a program that reads them."""


class Shown:
    """Shows how far a film is: a bar on a terminal, elsewhere a line from time to time.

    Attributes:
        made: frames that were made since the beginning, those left out that were there before.
    """

    def __init__(self, order: Order, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        self.made = 0
        self._before: int | None = None
        self._order = order
        self._console = console
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("indexing", total=100)
        self._shown = time.monotonic()

    def __enter__(self) -> "Shown":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def indexing(self, percent: int) -> None:
        """See `vsvsr.jobs.film.Progress`."""
        self._bar.update(self._task, completed=percent)
        self._show(f"indexing, {percent} %")

    def frames(self, done: int, total: int) -> None:
        """See `vsvsr.jobs.film.Progress`."""
        if self._before is None:
            self._before = done
            self._bar.reset(self._task, description=self._order.filter_name, total=total, completed=done)
        self.made = done - self._before
        self._bar.update(self._task, completed=done)
        self._show(f"{done} of {total} frames")

    def note(self, text: str) -> None:
        """See `vsvsr.jobs.film.Progress`."""
        show(self._console, f"{self._order.target}: {text}")

    def finished(self, film: Written, seconds: float) -> None:
        """The film has its name."""
        now = f"{self.made} of them now, " if self.made != film.frames else ""
        rate = f"{now}{self.made / seconds:.2f} fps"
        self.note(f"{film.frames} frames of {film.width}x{film.height} in {seconds:.1f} s, {rate}")

    def _show(self, text: str) -> None:
        if not self._console.is_terminal and time.monotonic() - self._shown >= LINE_SECONDS:
            self._shown = time.monotonic()
            self.note(text)


class Told:
    """Tells how far a film is as lines of JSON on standard output, for front ends.

    Each is an object with ``file`` and ``event``: ``indexing`` (``percent``), ``frames`` (``done``, ``total``, ``fps``
    and ``eta`` in seconds, both null before the first new frame), ``note`` (``text``), ``done`` (``frames``, ``width``,
    ``height``, ``seconds``), ``failed`` (``text``).
    """

    def __init__(self, order: Order) -> None:
        self.made = 0
        self._file = str(order.target)
        self._before = 0
        self._begun = 0.0
        self._told = 0.0

    def __enter__(self) -> "Told":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, UserError | OSError):
            self._tell("failed", text=explain(error) if isinstance(error, OSError) else str(error))

    def indexing(self, percent: int) -> None:
        """See `vsvsr.jobs.film.Progress`."""
        self._tell("indexing", percent=percent)

    def frames(self, done: int, total: int) -> None:
        """See `vsvsr.jobs.film.Progress`."""
        now = time.monotonic()
        if not self._begun:
            self._before, self._begun = done, now
        self.made = done - self._before
        if now - self._told >= JSON_SECONDS or done == total:
            self._told = now
            fps = self.made / (now - self._begun) if self.made else None
            self._tell("frames", done=done, total=total, fps=fps, eta=(total - done) / fps if fps else None)

    def note(self, text: str) -> None:
        """See `vsvsr.jobs.film.Progress`."""
        self._tell("note", text=text)

    def finished(self, film: Written, seconds: float) -> None:
        """The film has its name."""
        self._tell("done", frames=film.frames, width=film.width, height=film.height, seconds=seconds)

    def _tell(self, event: str, **more: object) -> None:
        sys.stdout.write(json.dumps({"file": self._file, "event": event, **more}) + "\n")
        sys.stdout.flush()


class _Rate(ProgressColumn):
    """Recent frames per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f} fps" if task.speed and not task.finished else "")
