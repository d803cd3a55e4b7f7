"""How far a film is, on a terminal and elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from vsvsr.jobs.order import Order

LINE_SECONDS = 15.0
"""Time between two lines of progress where there is no terminal."""


def show(console: Console, text: str) -> None:
    """One line, as it is."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


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

    def _show(self, text: str) -> None:
        if not self._console.is_terminal and time.monotonic() - self._shown >= LINE_SECONDS:
            self._shown = time.monotonic()
            self.note(text)


class _Rate(ProgressColumn):
    """Recent frames per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f} fps" if task.speed and not task.finished else "")
