"""The wheels for other machines, built on this one: what is in them, and the Linux one in an environment of its own."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vapoursynth as vs

from tests.pixels import planes
from vsvsr.filters.generate import ROOT

LINUX, WINDOWS = "manylinux_2_17_x86_64", "win_amd64"
PLUGIN = "vapoursynth/plugins/vsvsr"
LARGEST = 8_000_000
"""Bytes of a wheel."""

pytestmark = pytest.mark.skipif(
    sysconfig.get_platform() != "linux-x86_64", reason="wheels for all platforms are built on Linux, x86_64"
)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wheels by tag, from scripts/build_wheels."""
    folder = tmp_path_factory.mktemp("dist")
    environment = {**os.environ, "DIST": str(folder), "PYTHON": sys.executable}
    command = [ROOT / "scripts" / "build_wheels", LINUX, WINDOWS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {tag: next(folder.glob(f"vsvsr-*-py3-none-{tag}.whl")) for tag in (LINUX, WINDOWS)}


def library(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if re.fullmatch(rf"{PLUGIN}/vsvsr\.(so|dll)", name))
        return archive.read(name)


@pytest.mark.parametrize("tag", [LINUX, WINDOWS])
def test_a_wheel_holds_the_package_the_plugin_and_nothing_else(wheels: dict[str, Path], tag: str) -> None:
    assert wheels[tag].stat().st_size < LARGEST
    with zipfile.ZipFile(wheels[tag]) as archive:
        names = set(archive.namelist())
        assert archive.read(f"{PLUGIN}/manifest.vs") == b"[VapourSynth Manifest V1]\nvsvsr\n"
    suffix = "dll" if tag == WINDOWS else "so"
    assert {name for name in names if name.startswith("vapoursynth/")} == {
        f"{PLUGIN}/vsvsr.{suffix}",
        f"{PLUGIN}/manifest.vs",
    }
    assert {name.split("/")[0] for name in names} == {
        "vapoursynth",
        "vsvsr",
        next(name for name in names if name.endswith(".dist-info/WHEEL")).split("/")[0],
    }
    assert {"vsvsr/weights/shipped/fastreal-x4.safetensors", "vsvsr/triton_kernels/flow_warp.py", "vsvsr/py.typed"} <= (
        names
    )
    assert not [name for name in names if "__pycache__" in name]


def test_the_linux_library_asks_for_no_newer_system_than_its_tag_says(wheels: dict[str, Path]) -> None:
    binary = library(wheels[LINUX])
    assert binary.startswith(b"\x7fELF")
    asked = {int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", binary)}
    assert asked
    assert max(asked) <= 17
    assert b"GLIBCXX" not in binary  # the C++ library is inside
    assert not re.search(rb"libpython|libstdc\+\+|libc\+\+\.so", binary)


def test_the_windows_library_asks_for_nothing_but_windows(wheels: dict[str, Path]) -> None:
    binary = library(wheels[WINDOWS])
    header = int.from_bytes(binary[0x3C:0x40], "little")
    assert binary[header : header + 6] == b"PE\0\0\x64\x86"  # x86_64
    assert b"VapourSynthPluginInit2\0" in binary
    named = {name.decode().lower() for name in re.findall(rb"[\w.-]+\.dll(?=\0)", binary)}
    # python3.dll is looked for in the process, not loaded.
    system = {name for name in named if name.startswith("api-ms-win-crt-")} | {"kernel32.dll", "ntdll.dll"}
    assert named - system == {"vsvsr.dll", "python3.dll"}


@pytest.fixture(scope="module")
def environment(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of an environment with the Linux wheel and VapourSynth; other packages are those of this one.

    No compiler can be found from it.
    """
    root = tmp_path_factory.mktemp("fresh")
    here = Path(sysconfig.get_path("purelib"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    packages = next((root / "lib").glob("python3*")) / "site-packages"
    shutil.copytree(here / "vapoursynth", packages / "vapoursynth", ignore=shutil.ignore_patterns("plugins"))
    (packages / "borrowed.pth").write_text(f"{here}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--python", root / "bin" / "python", "install", "--quiet"]
    subprocess.run([*command, "--disable-pip-version-check", "--no-deps", "--no-index", wheels[LINUX]], check=True)
    return root / "bin"


def in_environment(scripts: Path, *command: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    kept |= {"PATH": str(scripts), "XDG_CONFIG_HOME": str(scripts.parent / "config")}
    where = scripts.parent  # not the repository, whose folders Python would import
    return subprocess.run(
        [scripts / command[0], *command[1:]], env=kept, cwd=where, capture_output=True, text=True, check=False
    )


PLAY = """
import hashlib, sys
import numpy as np
import vapoursynth as vs

def film(path):
    pictures = np.load(path)
    length, _, height, width = pictures.shape
    blank = vs.core.std.BlankClip(width=width, height=height, format=vs.RGBS, length=length)
    def fill(n, f):
        g = f.copy()
        for plane in range(3):
            np.asarray(g[plane])[:] = pictures[n, plane]
        return g
    return blank.std.ModifyFrame(blank, fill)

def digests(path):
    output = vs.core.vsvsr.FastReal(film(path), device_index=-1, segment=3, warmup=1)
    for n in (4, 0, 2):
        with output.get_frame(n) as frame:
            pixels = np.stack([np.asarray(frame[plane]) for plane in range(3)])
            yield hashlib.sha256(pixels.tobytes()).hexdigest()
"""

ELSEWHERE = """
root, path = sys.argv[1:]
assert vs.__file__.startswith(root), vs.__file__
import vsvsr
assert vsvsr.__file__.startswith(root), vsvsr.__file__
print(*digests(path))
"""


def test_the_wheel_makes_the_same_pixels_without_a_compiler(
    environment: Path, bikes: vs.VideoNode, tmp_path: Path
) -> None:
    film = tmp_path / "film.npy"
    np.save(film, np.stack([planes(frame) for frame in bikes[:5].frames(close=True)]))
    done = in_environment(environment, "python", "-c", PLAY + ELSEWHERE, str(environment.parent), str(film))
    assert done.returncode == 0, done.stderr
    here: dict[str, Any] = {}
    exec(PLAY, here)
    expected = list(here["digests"](film))
    assert len(set(expected)) == 3
    assert done.stdout.split() == expected


def test_a_process_that_loads_the_plugin_and_calls_no_filter_ends_cleanly(environment: Path) -> None:
    done = in_environment(environment, "python", "-c", "import vapoursynth as vs; print(vs.core.vsvsr.version)")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_of_the_wheel_reports_the_plugin_and_the_weights(environment: Path) -> None:
    done = in_environment(environment, "vsvsr", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("vsvsr ")
    report = in_environment(environment, "vsvsr", "doctor").stdout
    assert re.search(r"^ok   plugin +\S+, filters FastReal", report, flags=re.M), report
    assert re.search(r"^ok   weights fastreal-x4 +shipped, as published$", report, flags=re.M)
