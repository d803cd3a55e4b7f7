"""Files that appear under their names only when they are whole, and what must not outlive the process."""

import os
import secrets
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vsvsr.errors import UserError

_IN_USE = 20 if sys.platform == "win32" else 0
"""How often to try again, a tenth of a second later, to replace a file that another program has open."""

_LONGEST_BEGIN = 2.0
"""Seconds that `undo_everything` waits for what is just beginning."""

_lock = threading.RLock()
_begun: dict[object, Callable[[], object]] = {}


@contextmanager
def undone[T](begin: Callable[[], T], undo: Callable[[T], object]) -> Iterator[T]:
    """What ``begin`` returns; ``undo`` is called with it when the body is left, however, and by `undo_everything`.

    ``undo`` may run on another thread than the body, at any moment, and twice.
    """
    key = object()
    with _lock:  # nothing has begun without being known
        thing = begin()
        _begun[key] = lambda: undo(thing)
    try:
        yield thing
    finally:
        undo(thing)
        del _begun[key]


def undo_everything() -> None:
    """Undo what has begun, latest first. For a process that is about to end.

    From then on nothing begins any more, unless something is just beginning that takes long, such as Ray: that is not
    waited for.
    """
    _lock.acquire(timeout=_LONGEST_BEGIN)
    for undo in reversed(list(_begun.values())):
        with suppress(Exception):
            undo()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process if it still runs."""
    process.kill()
    process.wait()


def explain(error: OSError, name: object = None) -> str:
    """An operating system's error in one line; ``name`` is what it is about where the error does not say."""
    about = error.filename if name is None else name
    reason = error.strerror or str(error)
    return reason if about is None else f"{os.fsdecode(about) if isinstance(about, bytes) else about}: {reason}"


def check_target(target: Path) -> None:
    """Whether a file can come to be under this name, as far as can be told without writing.

    Raises:
        UserError: it is a folder, or is to be in one that does not exist, or the name itself is impossible.
    """
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        mode = 0
    except OSError as error:
        raise UserError(explain(error, target)) from None
    if stat.S_ISDIR(mode):
        raise UserError(f"{target} is a folder; give the name of a file")
    if not final_name(target).parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}")


def refuse_input(target: Path, *inputs: Path) -> None:
    """Raise a `UserError` where a file would be written over one that is read."""
    if target.exists() and any(file.exists() and target.samefile(file) for file in inputs):
        raise UserError(f"{target} is the input; choose another name")


def final_name(target: Path) -> Path:
    """Where a file of this name is really: links are followed, not replaced."""
    return Path(os.path.realpath(target))


@contextmanager
def scratch_folder(parent: Path, *, about: Path | None = None) -> Iterator[Path]:
    """A new hidden folder in ``parent``, removed with all that is in it; errors name ``about``.

    A folder and not a file, because a process that was ended too late cannot make a file in a folder that is gone.
    """
    path = parent / f".vsvsr-{os.getpid()}-{secrets.token_hex(4)}"

    def make() -> Path:
        try:
            path.mkdir()
        except OSError as error:
            raise UserError(explain(error, about or parent)) from None
        return path

    with undone(make, lambda folder: shutil.rmtree(folder, ignore_errors=True)) as folder:
        yield folder


@contextmanager
def scratch_beside(target: Path) -> Iterator[Path]:
    """A `scratch_folder` on the file system of ``target``, which is checked; `publish` moves files out of it."""
    check_target(target)
    with scratch_folder(final_name(target).parent, about=target) as folder:
        yield folder


def replace_file(written: Path, target: Path) -> None:
    """Give a file its final name, replacing what is there.

    Windows refuses to while another program has the old file open or mapped: a player, a virus scanner, a filter that
    reads its weights. Most close it soon.

    Raises:
        OSError: the file cannot have this name.
    """
    for _ in range(_IN_USE):
        with suppress(PermissionError):
            written.replace(target)
            return
        time.sleep(0.1)
    written.replace(target)


def publish(folder: Path, targets: Sequence[Path]) -> None:
    """Give every file of a scratch folder its final name, replacing what is there.

    Raises:
        UserError: a file is not there, is empty, or cannot have its name.
    """
    for target in targets:
        written = folder / target.name
        if not written.is_file() or written.stat().st_size == 0:
            raise UserError(f"{target}: nothing was written")
    for target in targets:
        try:
            replace_file(folder / target.name, final_name(target))
        except OSError as error:
            raise UserError(explain(error, target)) from None


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A name to write to; the file is renamed to ``target`` when the body ends, and removed when it fails.

    What is neither a file nor a folder, such as a pipe, is written to directly.

    Raises:
        UserError: at once if nothing can be written there, at the end if nothing was; an `OSError` of the body.
    """
    if target.exists() and not target.is_file() and not target.is_dir():
        yield target
        return
    with scratch_beside(target) as folder:
        try:
            yield folder / target.name
        except OSError as error:
            if error.filename is not None and not str(error.filename).startswith(str(folder)):
                raise
            raise UserError(explain(error, target)) from None
        publish(folder, [target])
