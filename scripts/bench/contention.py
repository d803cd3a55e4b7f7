"""Frames per second beside other work: FastReal on the CPU, 320x180 to 1280x720, in the programs that people use.

Every case runs with the package as it is, with torch loaded by the script before the filter, and with libgomp's own
spin count, which is what the first two are compared with (see vsvsr/engine/threads.py). Quiet, beside two processes
that only count, and beside an encoder on all cores. Linux only.
"""

import contextlib
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import imageio_ffmpeg

from scripts.bench import harness

BIN = Path(sysconfig.get_path("scripts"))
CLIP = Path(str(resources.files("vsvsr") / "assets" / "bigbuckbunny_320x180.mp4"))
X264 = ("-c:v", "libx264", "-preset", "slow", "-f", "null", "-")
TEST_FILM = ("-f", "lavfi", "-i", "testsrc2=size=1280x720:rate=25:duration=3600")

MODEL = "fastreal-compact-x4"
FILTER = f"clip.vsvsr.FastReal(device_index=-1, model={MODEL!r})"
ONE = f"output = {FILTER}"
TWO = f"output = core.std.Interleave([{FILTER}, {FILTER}])"
SCRIPT = """{first}
import vapoursynth as vs
core = vs.core
clip = core.bs.VideoSource({clip!r}, cachemode=0)[:{frames}].resize.Bicubic(format=vs.RGBS, matrix_in=1)
{filters}
output.resize.Bicubic(format=vs.YUV420P8, matrix=1).set_output()
"""

FORMS: dict[str, tuple[str, dict[str, str]]] = {
    "libgomp's own spins": ("", {"GOMP_SPINCOUNT": "300000"}),
    "as it is": ("", {}),
    "torch loaded before": ("import torch", {}),
}
"""First line of the script, environment."""


def busy() -> list[str]:
    """A process that only counts."""
    return ["sh", "-c", "while :; do :; done"]


def encoder() -> list[str]:
    """x264 on all cores, with pictures that never end."""
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *TEST_FILM, *X264]


LOADS = {"quiet": [], "beside two busy processes": [busy(), busy()], "beside x264 -preset slow": [encoder()]}


@contextlib.contextmanager
def beside(commands: list[list[str]]) -> Iterator[None]:
    """Other work, for as long as the context lasts."""
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def seconds(command: list[str] | str, environment: dict[str, str], pattern: str) -> float:
    """Run a program and return what it says of its own time."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        command, shell=isinstance(command, str), env=inherited | environment, capture_output=True, text=True, check=True
    )
    found = re.search(pattern, done.stderr)
    assert found, done.stderr
    return float(found[1])


def programs(folder: Path, frames: int) -> dict[str, Callable[[str, dict[str, str]], float]]:
    """What is timed: for the first line of a script and the environment, seconds of ``frames`` frames."""

    def script(first: str, filters: str) -> Path:
        path = folder / "script.vpy"
        path.write_text(SCRIPT.format(first=first, clip=str(CLIP), frames=frames, filters=filters))
        return path

    said = r"Output \d+ frames in ([\d.]+) seconds"

    def vspipe(first: str, environment: dict[str, str]) -> float:
        return seconds([str(BIN / "vspipe"), str(script(first, ONE)), "."], environment, said)

    def two(first: str, environment: dict[str, str]) -> float:
        return seconds([str(BIN / "vspipe"), str(script(first, TWO)), "."], environment, said)

    def piped(first: str, environment: dict[str, str]) -> float:
        x264 = " ".join([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", "-", *X264])
        return seconds(f"{BIN / 'vspipe'} -c y4m {script(first, ONE)} - | {x264}", environment, said)

    def upscale(first: str, environment: dict[str, str]) -> float:
        code = f"{first}\nfrom vsvsr.cli import main; main()"
        options = ["--device", "-1", "--model", MODEL, "--end", str(frames), "-y", "--encoder-option", "preset=slow"]
        command = [sys.executable, "-c", code, "upscale", str(CLIP), str(folder / "out.mkv"), *options]
        return seconds(command, environment, r"in ([\d.]+) s")

    return {"vspipe": vspipe, "vspipe | x264 -preset slow": piped, "vsvsr upscale": upscale, "vspipe, two filters": two}


def compare(results: harness.Results, rounds: int, frames: int, only: list[str]) -> None:
    """Frames per second of every program, form and load, and the ratio to libgomp's own spins."""
    with tempfile.TemporaryDirectory() as folder:
        for load, commands in LOADS.items():
            for program, run in programs(Path(folder), frames).items():
                if only and program not in only:
                    continue
                measures = {
                    form: (lambda run=run, first=first, environment=environment: run(first, environment))
                    for form, (first, environment) in FORMS.items()
                }
                with beside(commands):
                    times = harness.in_turn(measures, rounds, warmups=0)
                for form in FORMS:
                    number = frames * (2 if "two" in program else 1)
                    figures = {
                        "fps": number / times.median(form),
                        "best fps": number / times.best(form),
                        "x faster": 1 / times.ratio(form, "libgomp's own spins"),
                    }
                    results.add(f"{program}, {load}: {form}", figures)


def main() -> None:
    """The command line."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--only", action="append", default=[], help="one of the programs, by its name")
    given = parser.parse_args()
    compare(harness.Results("contention", given.csv), given.rounds, given.frames, given.only)


if __name__ == "__main__":
    main()
