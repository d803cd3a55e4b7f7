"""A film made by several processes and machines through Ray: real Ray, real processes that die, the native plugin."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.test_jobs import digests, silent

ray = pytest.importorskip("ray")

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
PARTS = 8


class Ordered:
    """A film of eight parts, and what one process makes of it."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self.source = silent(folder / "in.mkv", 5 * PARTS)
        self.job = folder / "job"
        self.target = folder / "out.mkv"
        more = ("--model-path", weights, "--encoder", "ffv1", "--segment", "5", "--arg", "warmup=3")
        self._command = [sys.executable, "-m", "vsvsr", "upscale", self.source, *more]
        alone = folder / "alone.mkv"
        subprocess.run([*self._command, alone], env=ONE_THREAD, check=True)
        self.expected = digests(alone)

    def begin(self, *more: str) -> "subprocess.Popen[str]":
        command = [*self._command, self.target, "--job", self.job, "--keep-job", *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=ONE_THREAD, text=True, **pipes)  # type: ignore[call-overload]

    def parts(self) -> int:
        return len(list(self.job.glob("*.mkv")))


def until(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def killed_one(parent: psutil.Process) -> bool:
    """Kill a process of Ray's that makes a part; whether there was one."""
    for child in parent.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "_make" in "".join(child.cmdline()):
                child.kill()
                return True
    return False


@pytest.fixture
def ordered(tmp_path: Path, tiny_fastreal: Path) -> Ordered:
    return Ordered(tmp_path, tiny_fastreal)


def test_two_processes_make_the_film_of_one_even_if_one_dies_and_go_on_where_they_were(ordered: Ordered) -> None:
    process = ordered.begin("--devices", "-1,-1")
    until(lambda: ordered.parts() >= 2, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[1].endswith("vsvsr: interrupted\n")
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    before = ordered.parts()
    assert before < PARTS
    process = ordered.begin("--devices", "-1,-1")
    until(lambda: killed_one(psutil.Process(process.pid)), process)
    output, said = process.communicate(timeout=240)
    assert (process.returncode, output) == (0, ""), said
    assert f"{before} of {PARTS} parts are there" in said
    assert digests(ordered.target) == ordered.expected
    assert ordered.parts() == PARTS
    assert not list(ordered.job.glob(".vsvsr-*"))


def started[T](start: Callable[[], T]) -> T:
    """What ``start`` gives: Ray gives its processes 30 s to start, too few for a machine at its limit."""
    for _ in range(3):
        with suppress(Exception):
            return start()
    return start()


@pytest.fixture
def cluster() -> Iterator[object]:
    """Two machines of one CPU each, pretended by Ray on this one."""
    from ray.cluster_utils import Cluster

    two = started(lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}))
    started(lambda: two.add_node(num_cpus=1))
    yield two
    two.shutdown()


def test_a_film_outlives_a_machine_of_the_cluster_that_shares_no_folder(ordered: Ordered, cluster: object) -> None:
    process = ordered.begin("--ray", cluster.address, "--send-source")  # type: ignore[attr-defined]
    until(lambda: ordered.parts() >= 2, process)
    second = next(iter(cluster.worker_nodes))  # type: ignore[attr-defined]
    cluster.remove_node(second, allow_graceful=False)  # type: ignore[attr-defined]
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said
    assert digests(ordered.target) == ordered.expected


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--devices 0,-1", "--devices 0,-1: write CUDA devices, as 0,1,2, or -1,-1 for the CPU"),
        ("--devices=", "--devices : write CUDA devices, as 0,1,2, or -1,-1 for the CPU"),
        ("--devices all", "--devices all: write CUDA devices, as 0,1,2, or -1,-1 for the CPU"),
        ("--devices 0 --ray local", "give --devices for this machine or --ray for a cluster, not both"),
    ],
)
def test_devices_that_cannot_be_are_one_line(tmp_path: Path, options: str, line: str) -> None:
    command = [sys.executable, "-m", "vsvsr", "upscale", tmp_path / "in.mkv", tmp_path / "out.mkv", *options.split()]
    said = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert (said.returncode, said.stderr) == (2, f"vsvsr: {line}\n")
