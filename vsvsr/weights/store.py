"""Where weights lie on this machine, and whether they are what the manifest says."""

import hashlib
import os
from pathlib import Path

import platformdirs

from vsvsr.errors import UserError
from vsvsr.weights.manifest import MANIFEST, Weights

_SHIPPED = Path(__file__).parent / "shipped"


def folder() -> Path:
    """The cache folder of installed weights: ``VSVSR_WEIGHTS_DIR``, else the user's cache folder."""
    chosen = os.environ.get("VSVSR_WEIGHTS_DIR")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("vsvsr", appauthor=False)) / "weights"


def row(name: str) -> Weights:
    """The manifest's row of ``name``; ``UserError`` when there is none."""
    for weights in MANIFEST:
        if weights.name == name:
            return weights
    raise UserError(f"weights {name!r} are unknown; known are {', '.join(weights.name for weights in MANIFEST)}")


def location(weights: Weights) -> Path:
    """Where the file of ``weights`` belongs, present or not."""
    return (_SHIPPED if weights.shipped else folder()) / weights.file


def present(weights: Weights) -> bool:
    """Whether the file of ``weights`` is on this machine; for the base model of Ultra it is a folder."""
    return location(weights).exists()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(name: str) -> Path:
    """The verified file of published weights, or a file of the user's own.

    Args:
        name: a name of the manifest, or else the path of an existing file, which is taken as it is.

    Raises:
        UserError: neither, not installed (the message names the command that installs), or broken.
    """
    if any(weights.name == name for weights in MANIFEST):
        return verify(name)
    if Path(name).is_file():
        return Path(name)
    known = ", ".join(weights.name for weights in MANIFEST)
    raise UserError(f"weights {name!r} are neither an existing file nor one of {known}")


def verify(name: str) -> Path:
    """The file of ``name``, after comparing its sha256 with the manifest's; ``UserError`` when missing or different.

    Files that users brought were checked when they were added, and are again when a network is built from them.
    """
    weights = row(name)
    path = location(weights)
    if weights.origin:
        if not present(weights):
            raise UserError(f"weights {name} are not here; get {weights.origin}, then run: vsvsr weights add FILE")
        return path
    remedy = "reinstall vsvsr" if weights.shipped else f"run: vsvsr weights install {name}"
    if not path.is_file():
        raise UserError(f"weights {name} are not installed; {remedy}")
    try:
        intact = path.stat().st_size == weights.size and sha256(path) == weights.sha256
    except OSError as error:
        raise UserError(f"weights {name} cannot be read ({path}: {error.strerror})") from error
    if not intact:
        raise UserError(f"weights {name} are damaged ({path}); {remedy}")
    return path
