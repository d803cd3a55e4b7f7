"""How torch's CPU threads wait, each case in a process of its own: libgomp is told when it is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only torch for Linux brings libgomp")

PLAY = """
import ctypes, os, sys, threading
before = dict(os.environ)
import vapoursynth as vs
clip = vs.core.std.BlankClip(width=48, height=32, format=vs.RGBS, length=3)
vs.core.vsvsr.FastReal(clip, model_path=sys.argv[1], device_index=-1).get_frame(2)
import torch
threads = [torch.get_num_threads()]
other = threading.Thread(target=lambda: threads.append(torch.get_num_threads()))
other.start()
other.join()
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
print(dict(os.environ) == before, getenv(b"GOMP_SPINCOUNT"), threads)
print("vsvsr idle" in [thread.name for thread in threading.enumerate()])
"""


def python(code: str, *arguments: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` without the settings of this process."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )


def test_torch_that_a_filter_loads_spins_briefly_and_nothing_else_is_changed(tiny_fastreal: Path) -> None:
    done = python(PLAY, tiny_fastreal, OMP_NUM_THREADS="1", OMP_DISPLAY_ENV="VERBOSE")
    assert "GOMP_SPINCOUNT = '2000'" in done.stderr
    assert done.stdout == "True None [1, 1]\nFalse\n"


def test_where_torch_was_loaded_before_an_idle_team_is_kept_and_nothing_is_changed(tiny_fastreal: Path) -> None:
    done = python("import torch\n" + PLAY, tiny_fastreal, OMP_NUM_THREADS="1", OMP_DISPLAY_ENV="VERBOSE")
    assert "GOMP_SPINCOUNT = '300000'" in done.stderr
    assert done.stdout == "True None [1, 1]\nTrue\n"


@pytest.mark.parametrize("first", ["", "import torch\n"])
def test_how_the_user_wants_threads_to_wait_is_left_alone(first: str, tiny_fastreal: Path) -> None:
    environment = {"OMP_NUM_THREADS": "1", "OMP_DISPLAY_ENV": "VERBOSE", "GOMP_SPINCOUNT": "7"}
    done = python(first + PLAY, tiny_fastreal, **environment)
    assert "GOMP_SPINCOUNT = '7'" in done.stderr
    assert done.stdout == "True b'7' [1, 1]\nFalse\n"


LOADED_BEFORE = """
import ctypes, os, threading, time
import torch
from vsvsr.engine.worker import Worker

def tasks():
    return os.listdir("/proc/self/task")

def only(count):
    deadline = time.monotonic() + 60
    while len(tasks()) > count and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(tasks()) - count

def regions():
    tensor = torch.zeros(100_000)  # large enough for two threads
    for task in tasks():
        os.sched_setaffinity(int(task), {alone})
    start = time.process_time()
    for _ in range(10):
        tensor.add_(1)
    seconds.append(time.process_time() - start)

torch.set_num_threads(2)
cpus = ctypes.CDLL(torch._C.__file__).omp_get_num_procs()
alone = min(os.sched_getaffinity(0))
seconds = []
before = len(tasks())
other = threading.Thread(target=regions)
other.start()
other.join()
assert only(before) == 0
worker = Worker(torch.device("cpu"))
worker.run(torch.get_num_threads)
added = len(tasks()) - before
worker.run(regions)
worker.stop()
print(added, cpus, only(before), *seconds)
"""


@pytest.mark.skipif(os.cpu_count() == 1, reason="on one CPU two threads spin briefly anyway")
def test_where_torch_was_loaded_before_the_worker_s_team_sleeps_and_its_idle_threads_end_with_it() -> None:
    added, cpus, left, elsewhere, on_worker = map(float, python(LOADED_BEFORE).stdout.split())
    # The worker, the master of the idle team, and so many of that as make one thread too many with the worker's two.
    assert (added, left) == (2 + cpus - 2 + 1, 0)
    # Seconds of CPU, not of the clock, for two threads that share one CPU: all but the work is spinning.
    assert on_worker < elsewhere / 4
