"""What the benchmarks share: timers, rounds in turn and ratios within them, video frames, rows printed and kept as CSV.

Ratios are what to quote. The forms that are compared run one after the other in every round, the ratio of two forms is
taken within each round, and the median over the rounds counts: a machine that slows down slows all forms alike.
"""

import argparse
import csv
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import vapoursynth as vs
from torch import Tensor

from vsvsr.jobs.benchmark import processor
from vsvsr.video.source import open_video

type Measure = Callable[[], float]
"""One run, in seconds."""


@dataclass(frozen=True)
class Time:
    """Seconds of one call, on the wall and summed over the process's threads."""

    wall: float
    cpu: float


def timed[T](work: Callable[[], T]) -> tuple[T, Time]:
    """The result of one call, and its time."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, Time(time.perf_counter() - wall, time.process_time() - cpu)


def wall(work: Callable[[], object]) -> Measure:
    """Measure ``work`` by wall-clock time."""
    return lambda: timed(work)[1].wall


def on_gpu(work: Callable[[], object]) -> Measure:
    """Measure ``work`` by the GPU's own clock, from the first kernel queued to the last one done."""

    def measure() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return measure


@dataclass(frozen=True)
class Rounds:
    """Seconds of every form in every round."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Seconds."""
        return statistics.median(self.seconds[name])

    def best(self, name: str) -> float:
        """Seconds."""
        return min(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        """The median over the rounds of the time of ``name`` over the time of ``to``."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True))


def in_turn(measures: Mapping[str, Measure], rounds: int, *, warmups: int = 1) -> Rounds:
    """Every measure once a round, after ``warmups`` rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(warmups + rounds):
        for name, measure in measures.items():
            value = measure()
            if number >= warmups:
                seconds[name].append(value)
    return Rounds(seconds)


def machine() -> str:
    """Processor, threads in use, GPU if there is one, versions of Python and torch."""
    parts = [processor(), f"{torch.get_num_threads()} of {os.cpu_count()} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join([*parts, f"Python {platform.python_version()}", f"torch {torch.__version__}"])


class Results:
    """Rows of figures: printed as they come, and appended to a CSV file, one line a figure, with machine and date.

    Args:
        benchmark: its name in the file.
        path: the file, or None to print only.
    """

    COLUMNS = ("date", "machine", "benchmark", "case", "quantity", "value")

    def __init__(self, benchmark: str, path: Path | None) -> None:
        self.benchmark = benchmark
        self.path = path
        self._quantities: list[str] = []
        print(f"{benchmark}: {datetime.now(UTC):%Y-%m-%d}, {machine()}", flush=True)

    def add(self, case: str, figures: Mapping[str, float]) -> None:
        """One row; ``figures`` has the value of each quantity, whose name says the unit."""
        widths = [max(10, len(quantity)) for quantity in figures]
        if list(figures) != self._quantities:
            self._quantities = list(figures)
            print("\n" + " " * 44 + "  ".join(f"{q:>{width}}" for q, width in zip(figures, widths, strict=True)))
        cells = (f"{value:>{width}.4g}" for value, width in zip(figures.values(), widths, strict=True))
        print(f"{case:<44}" + "  ".join(cells), flush=True)
        if self.path is not None:
            self._append(case, figures)

    def _append(self, case: str, figures: Mapping[str, float]) -> None:
        assert self.path is not None
        begin = (datetime.now(UTC).isoformat(timespec="seconds"), machine(), self.benchmark, case)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(self.COLUMNS)
            writer.writerows((*begin, quantity, f"{value:.6g}") for quantity, value in figures.items())


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark: ``--csv`` and ``--threads``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="append the figures to this file")
    parser.add_argument("--threads", type=_use_threads, help="of torch on the CPU; default: torch's own choice")
    return parser


def _use_threads(text: str) -> int:
    torch.set_num_threads(int(text))
    return int(text)


def in_fresh_process[*P, R](function: Callable[[*P], R], *given: *P, environment: Mapping[str, str] | None = None) -> R:
    """Call ``function`` in a new process, whose peak memory is its own; it and its arguments must be picklable."""
    with (
        mock.patch.dict(os.environ, environment or {}),
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
    ):
        return pool.submit(function, *given).result()


def peak_megabytes() -> float:
    """The largest resident size of this process so far, in MB; Linux only.

    Not `resource.getrusage`: its figure passes from a process to the ones it starts.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) * 1024 / 1e6


def open_clip(path: Path) -> vs.VideoNode:
    """A video file as RGBS, decoded as ``vsvsr upscale`` does."""
    return open_video(path, lambda percent: None).clip


def tensors(clip: vs.VideoNode) -> Iterator[Tensor]:
    """Frames ``(3, h, w)`` fp32 of an RGBS clip."""
    for frame in clip.frames(close=True):
        yield torch.from_numpy(np.stack([np.asarray(frame[plane]) for plane in range(3)]))
