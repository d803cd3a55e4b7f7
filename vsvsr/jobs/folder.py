"""A job on disk: what it is, and its finished parts. The files are the truth; nothing else remembers what is done.

``job.json`` says what the job is and which parts it has. A finished part is a file named by its first frame, and beside
it a record of what is in it. Both are written under other names, brought to the disk, and then renamed, the record
first: a part that has its name is whole.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock

from vsvsr.errors import UserError
from vsvsr.files import explain, final_name, replace_file, undone
from vsvsr.jobs.identity import Identity, differences
from vsvsr.jobs.parts import Part
from vsvsr.video.tracks import MOV

_LONGEST_NAME = 200

_PART = re.compile(rf"\d{{8,}}({'|'.join(map(re.escape, sorted({*MOV, '.mkv'})))})")
"""Names of finished parts, whatever container they are in."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is in a finished part.

    Attributes:
        frames: how many.
        digest: SHA-256 of the samples of all frames, as the encoder got them.
        size: of the file, in bytes.
        sha256: of the file.
    """

    frames: int
    digest: str
    size: int
    sha256: str


def beside(target: Path) -> Path:
    """The job folder of a film, if none is given."""
    final = final_name(target)
    name = final.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return final.with_name(f".{name}.vsvsr")


class JobFolder:
    """The folder of a job.

    Args:
        path: the folder.
        suffix: of the parts' files.
    """

    def __init__(self, path: Path, suffix: str) -> None:
        self.path = path
        self._suffix = suffix

    def file(self, part: Part) -> Path:
        """Where a part is when it is finished."""
        return self.path / f"{part.first:08d}{self._suffix}"

    def record(self, part: Part) -> Record | None:
        """What a part's record says, if the part is finished and there is a sound record."""
        if not self.file(part).is_file():
            return None
        try:
            record = Record(**json.loads(self._record_file(part).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return Record(frames=0, digest="", size=-1, sha256="")
        return record

    def is_sound(self, part: Part) -> bool:
        """Whether the file of a finished part is what its record says. Reads the file."""
        record = self.record(part)
        if record is None or record.frames != len(part) or record.size != self.file(part).stat().st_size:
            return False
        return record.sha256 == file_hash(self.file(part))

    def commit(self, part: Part, written: Path, digest: str) -> None:
        """Give a written part its name."""
        record = Record(frames=len(part), digest=digest, size=written.stat().st_size, sha256=file_hash(written))
        write_whole(self._record_file(part), json.dumps(asdict(record)), written.parent)
        _to_disk(written)
        replace_file(written, self.file(part))
        _to_disk(self.path)

    def begin(self, identity: Identity, parts: Sequence[Part]) -> None:
        """Write down what the job is, or compare with what it was when it was begun.

        Raises:
            UserError: it is another job.
        """
        plan = {**identity, "parts": [[part.first, part.last] for part in parts]}
        description = self.path / "job.json"
        if not self.has_parts():
            write_whole(description, json.dumps(plan, indent=1), self.path)
            return
        try:
            before = json.loads(description.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            raise UserError(f"{description} is missing or damaged; remove {self.path}") from None
        changed = differences(before, json.loads(json.dumps(plan)))
        others = {file.suffix for file in self.path.iterdir() if _PART.fullmatch(file.name)} - {self._suffix}
        changed += [f"container was {suffix}, is {self._suffix}" for suffix in sorted(others)]
        if changed:
            raise UserError(
                f"{self.path} was begun differently: {'; '.join(changed)}; "
                "give what was given then, another --job, or remove the folder"
            )

    def clean(self) -> None:
        """Remove what killed processes were writing."""
        for file in self.path.glob("joined*"):
            if file.stem == "joined":
                file.unlink(missing_ok=True)
        for folder in self.path.glob(".vsvsr-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def has_parts(self) -> bool:
        """Whether something is finished."""
        return any(_PART.fullmatch(file.name) for file in self.path.iterdir())

    def remove(self) -> None:
        """Remove what belongs to the job, and the folder too unless something else is in it.

        After a signal two threads may do so at once.
        """
        own = self.own()
        self.clean()
        for name in own:
            with suppress(OSError):  # it is not there, or Windows keeps it: the lock while it is held
                (self.path / name).unlink()
        with suppress(OSError):
            self.path.rmdir()

    def own(self) -> set[str]:
        """Names of the files that the job makes."""
        names = {"job.json", "job.json.new", "lock"}
        try:
            firsts = [first for first, _ in json.loads((self.path / "job.json").read_text(encoding="utf-8"))["parts"]]
        except (OSError, ValueError, KeyError, TypeError):
            return names
        return names | {f"{first:08d}{suffix}" for first in firsts for suffix in (self._suffix, ".json")}

    def _record_file(self, part: Part) -> Path:
        return self.path / f"{part.first:08d}.json"


@contextmanager
def held(path: Path, suffix: str, about: Path) -> Iterator[JobFolder]:
    """The job folder, made if need be, for this process alone; what a job makes goes in the end if nothing is finished.

    Args:
        path: the folder.
        suffix: of the parts' files.
        about: what errors name.

    Raises:
        UserError: it cannot be made, is something else, or another process works in it.
    """
    job = JobFolder(path, suffix)
    lock = filelock.FileLock(path / "lock", timeout=0, thread_local=False)

    def take() -> JobFolder:
        try:
            path.mkdir(exist_ok=True)
            foreign = {entry.name for entry in path.iterdir()} - job.own()
            if foreign and not (path / "job.json").exists():
                raise UserError(f"{path} holds other files; give --job a folder of its own")
            lock.acquire()
        except filelock.Timeout:
            raise UserError(f"{about}: another process works on it, in {path}") from None
        except OSError as error:
            raise UserError(explain(error, about)) from None
        return job

    def leave(job: JobFolder) -> None:
        if not lock.is_locked or not path.exists():
            return
        job.clean()  # what processes that died were writing
        if not job.has_parts():
            job.remove()

    try:
        with undone(take, leave):
            job.clean()
            yield job
    finally:
        lock.release()
        if sys.platform == "win32" and not (path / "job.json").exists():
            with suppress(OSError):
                (path / "lock").unlink(missing_ok=True)
                path.rmdir()


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(target: Path, text: str, folder: Path) -> None:
    """Write a small file so that it is there whole or not at all, through ``folder`` on the same disk."""
    written = folder / f"{target.name}.new"
    written.write_text(text, encoding="utf-8")
    _to_disk(written)
    replace_file(written, target)
    _to_disk(target.parent)


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power failure."""
    if path.is_dir() and os.name != "posix":  # elsewhere folders cannot be opened
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
