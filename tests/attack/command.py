"""Signals to the command line at any moment: nothing half is left, nothing runs on, and the next run makes the film."""

import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tests.attack.setups import PATIENCE
from tests.attack.tally import DifferenceError, Tally
from tests.clips import clip_path
from tests.films import ffmpeg

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENDS = {0, 130, *(-number for number in SIGNALS)}
"""Exit codes; a signal that comes before any of our code runs ends Python itself."""


@dataclass
class Film:
    """A small film, and how it is upscaled in four parts.

    Attributes:
        folder: for all files; each run has a folder of its own in it.
        weights: of a small FastReal.
    """

    folder: Path
    weights: Path
    _runs: int = field(default=0, init=False)

    @cached_property
    def source(self) -> Path:
        """One frame a second, so that parts of five seconds have five frames."""
        path = self.folder / "in.mkv"
        more = ("-vf", "scale=64:36,setpts=N/TB", "-r", "1", "-frames:v", "20", "-an", "-c:v", "libx264")
        ffmpeg("-i", clip_path("bikes.mp4"), *more, path)
        return path

    @cached_property
    def expected(self) -> tuple[str, float]:
        """Checksums of all frames of the film, and the seconds that it takes."""
        folder = self.place()
        begun = time.monotonic()
        self.start(folder).communicate(timeout=PATIENCE)
        seconds = time.monotonic() - begun
        return checksums(folder / "out.mkv"), seconds

    def place(self) -> Path:
        """A new folder."""
        self._runs += 1
        path = self.folder / f"run{self._runs}"
        path.mkdir()
        return path

    def start(self, folder: Path) -> "subprocess.Popen[str]":
        """Begin to make the film."""
        options = ("--model-path", self.weights, "--encoder", "ffv1", "--segment", "5", "--arg", "warmup=2", "-y")
        command = [
            sys.executable,
            "-m",
            "vsvsr",
            "upscale",
            self.source,
            folder / "out.mkv",
            "--device",
            "-1",
            *options,
        ]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=_as_in_a_shell)


def _as_in_a_shell() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def checksums(path: Path) -> str:
    """Of every frame, with its time."""
    return ffmpeg("-i", path, "-map", "0", "-f", "framemd5", "-")


def attack(film: Film, rng: random.Random, tally: Tally) -> None:
    """One round: a film that is interrupted up to three times, and then finished."""
    expected, seconds = film.expected
    folder = film.place()
    for _ in range(rng.randint(1, 3)):
        process = film.start(folder)
        while process.poll() is None and not _minds_signals(process.pid):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 1.1) ** 2 * seconds)
        numbers = [rng.choice(SIGNALS) for _ in range(rng.choice((1, 1, 2, 5)))]
        for number in numbers:
            process.send_signal(number)
            time.sleep(rng.choice((0, 0, 0.01)))
        tally.add("signals sent to the command line", len(numbers))
        _, said = process.communicate(timeout=PATIENCE)
        _judge(process.returncode, said, folder)
    process = film.start(folder)
    _, said = process.communicate(timeout=PATIENCE)
    if process.returncode or [path.name for path in folder.iterdir()] != ["out.mkv"]:
        raise DifferenceError(f"the film was not finished: {said}; there are {sorted(folder.iterdir())}")
    if checksums(folder / "out.mkv") != expected:
        raise DifferenceError("the interrupted film is another than the one that was made at once")
    tally.add("interrupted films that came out as if they had not been")
    shutil.rmtree(folder)


def _judge(code: int, said: str, folder: Path) -> None:
    if code not in ENDS or "Traceback" in said:
        raise DifferenceError(f"exit code {code}: {said}")
    finished = folder / "out.mkv"
    if code and finished.exists() and not said:
        raise DifferenceError("a film has its name although it was interrupted")
    others = {path.name for path in folder.iterdir()} - {finished.name, f".{finished.name}.vsvsr"}
    if others:
        raise DifferenceError(f"{others} are left")
    listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    running = [line for line in listed.splitlines() if str(folder) in line]
    if running:
        raise DifferenceError(f"processes run on: {running}")


def _minds_signals(process: int) -> bool:
    """Whether the process has said what it does about SIGTERM. Before that Python's own start is under way."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return True
    caught = next((line.split()[1] for line in lines if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)
