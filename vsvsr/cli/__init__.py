"""``vsvsr ...`` on the command line, for people who write no scripts."""

import os
import select
import signal
import sys
from concurrent.futures import Future, wait
from contextlib import suppress
from io import TextIOWrapper
from threading import Thread
from types import FrameType

from vsvsr import files

INTERRUPTED = 130
"""Exit code after Ctrl-C and other signals that end a program, as shells have it."""


def main() -> None:
    """Run the command line; what goes wrong is one line on stderr and exit code 1, or 2 for a wrong command line.

    The command runs on a thread of its own: a signal is then noticed at once, whatever the command waits for, and no
    exception of the signal meets it at a moment at which it cannot clean up.
    """
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup sets it
    _hear(heard)
    if isinstance(sys.stdout, TextIOWrapper):
        # Names of files need not be UTF-8, nor fit into what a terminal on Windows takes.
        utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    outcome: Future[tuple[int, str]] = Future()
    Thread(target=_run, args=(outcome,), daemon=True).start()
    while not wait((outcome,), timeout=0.5).done:  # without a timeout Windows notices no Ctrl-C
        _hear(heard)  # Ray's own library takes SIGTERM when it connects
    code, message = outcome.result()
    if message:
        sys.stderr.write(message)
    sys.exit(code)


def _hear(numbers: list[int]) -> None:
    for number in numbers:
        signal.signal(number, _stop)


def _run(outcome: Future[tuple[int, str]]) -> None:
    try:
        outcome.set_result(_command())
    except BaseException as error:
        outcome.set_exception(error)


def _command() -> tuple[int, str]:
    """Exit code and message of the command that the arguments of the process ask for."""
    try:
        from vsvsr.cli.app import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "vsvsr":
            raise
        return 1, f'vsvsr: the command line needs {error.name}; run: pip install "vsvsr[cli]"\n'
    return run()


_stopping = False


def _stop(number: int, frame: FrameType | None) -> None:
    """End the process now: stop ffmpeg, remove unfinished files, and leave VapourSynth alone.

    VapourSynth may be at work on another thread; taking it down meanwhile would crash. Nothing here takes a lock that
    the interrupted main thread may hold.
    """
    global _stopping
    if _stopping:  # a second signal must not wait for locks that the first one's handler holds
        return
    _stopping = True
    files.undo_everything()
    with suppress(OSError):  # the terminal may be gone
        terminal = os.isatty(2)
        if terminal and os.name == "posix" and not select.select([], [2], [], 1.0)[1]:
            os._exit(INTERRUPTED)  # held, by Ctrl-S: it would take nothing
        # On a terminal the line of the progress bar is cleared, and the cursor shown again.
        os.write(2, b"\r\x1b[K\x1b[?25h" * terminal + b"vsvsr: interrupted\n")
    os._exit(INTERRUPTED)
