"""The parts of a job made by several devices at once, on this machine or on many, through Ray Core.

Ray decides which part is made where, and makes it again elsewhere when a process or a machine dies. A part is made by
the same code as without it, by a process that has one device, and refused by a machine on which it would get other
pixels: another kind of device, other versions, other weights, another source.
"""

import importlib
import logging
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from vsvsr.errors import UserError, WrongArgumentError
from vsvsr.files import explain, scratch_folder, undone
from vsvsr.jobs.folder import JobFolder
from vsvsr.jobs.identity import Identity, describe_device, differences, identify
from vsvsr.jobs.order import Opened, Order
from vsvsr.jobs.parts import Part
from vsvsr.jobs.work import make_parts
from vsvsr.video.film import Film
from vsvsr.video.join import part_suffix

_RETRIES = 3
"""How often a part is begun again whose process or machine died."""

_STARTS = 3

_STOP_SECONDS = 15

_ANSWER_SECONDS = 3
"""How long to wait for what Ray has been asked before it is shut down."""

_TELL_SECONDS = 0.5
"""Time between two reports of a process about its frames."""

_asking = threading.Lock()
"""Held while something is asked of Ray, which ends the process when it is asked after it was shut down."""

_SAME = ("source", "weights", "versions", "device", "tile", "picture")
"""What of a job's identity a machine must agree with."""


class Cluster:
    """Who makes the parts of films; Ray is connected, or started for as long as this is open, when it is needed.

    Args:
        devices: CUDA devices of this machine, or -1 for each process on its CPU; empty if ``address`` is given.
        address: of a running Ray, or ``local`` for one that has all of this machine.
        send_source: the source goes to the machines, and parts come back, through Ray; else the machines see both
            under the same names.
    """

    def __init__(self, *, devices: Sequence[int] = (), address: str = "", send_source: bool = False) -> None:
        self._devices = devices
        self._address = address
        self._send_source = send_source
        self._threads = 0
        self._ray: Any = None
        self._open = ExitStack()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def workers(self, order: Order) -> "Workers":
        """The processes that make the parts of a film.

        Raises:
            UserError: Ray is missing, cannot be reached, or has no such devices.
        """
        if self._ray is None:
            # Read when Ray is imported: what it says about workers that died would go to standard output.
            os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
            try:
                ray = importlib.import_module("ray")
            except ModuleNotFoundError:
                raise UserError('several devices need Ray; run: pip install "vsvsr[cluster]"') from None
            self._open.enter_context(undone(lambda: self._start(ray), lambda _: _stop(ray)))
            self._ray = ray
        ray, threads = self._ray, self._threads
        on_cpu = order.arguments.get("device_index") == -1 or not ray.cluster_resources().get("GPU")
        resources: dict[str, float] = {"num_cpus": threads} if on_cpu else {"num_cpus": 1, "num_gpus": 1}
        largest = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
        if largest < resources["num_cpus"]:
            raise UserError(
                f"a part computes with {threads} CPU threads, the largest machine of the cluster has {largest:.0f}; "
                "set OMP_NUM_THREADS"
            )
        return Workers(ray, order, resources, threads if on_cpu else 0, send_source=self._send_source)

    def _start(self, ray: Any) -> None:
        """Connect to Ray, or start it, and settle how many CPU threads a process on a CPU computes with."""
        import vsvsr.engine.threads  # noqa: F401  before torch: it decides how torch's threads wait

        # isort: split

        import torch

        logging.getLogger("ray._private.worker").setLevel(logging.ERROR)
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        self._threads = torch.get_num_threads()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            if not self._devices and self._address != "local":
                ray.init(self._address, **quiet)
                return
            gpus = [device for device in self._devices if device >= 0]
            amounts = {}
            if gpus:
                os.environ["CUDA_VISIBLE_DEVICES"] = _visible(gpus, torch.cuda.device_count())
                amounts = {"num_cpus": len(gpus), "num_gpus": len(gpus)}
            elif self._devices:
                self._threads = max(self._threads // len(self._devices), 1)
                amounts = {"num_cpus": self._threads * len(self._devices), "num_gpus": 0}
            _start_here(ray, include_dashboard=False, **amounts, **quiet)
        except WrongArgumentError:
            raise
        except Exception as error:  # Ray raises whatever its parts raise, Exception itself included
            raise UserError(f"Ray: {_one_line(error)}") from None


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What a process says about a part: ``problem`` in one line; with `Cluster.send_source` the part itself."""

    problem: str = ""
    content: bytes = b""
    digest: str = ""


class Workers:
    """The processes that make the parts of one film.

    Args:
        ray: the module, connected.
        order: what is made.
        resources: of each process, as ``ray.remote`` takes them.
        threads: of the CPU that each process computes with; 0 on GPUs.
        send_source: see `Cluster`.

    Attributes:
        plan: what this process opens.
        device: what the others compute on.
    """

    def __init__(self, ray: Any, order: Order, resources: dict[str, float], threads: int, *, send_source: bool) -> None:
        self._ray = ray
        self._order = _everywhere(order, device_index=-1 if threads else 0)
        self._threads = threads
        self._send_source = send_source
        self._make = ray.remote(**resources, max_retries=_RETRIES)(_make)
        # This process only needs to know the film: it leaves the GPUs to the others.
        self.plan = replace(order, arguments={**order.arguments, "device_index": -1})
        describe = ray.remote(**resources, max_retries=_RETRIES)(_describe)
        try:
            self.device = str(ray.get(describe.remote(self._order, threads)))
        except ray.exceptions.RayError as error:
            raise UserError(f"Ray: {_one_line(error)}") from None

    def make(
        self,
        film: Film,
        job: JobFolder,
        parts: Sequence[Part],
        *,
        zero: int,
        identity: Identity,
        on_frames: Callable[[int], object],
    ) -> None:
        """Make parts and put them into the job's folder.

        Args:
            film: what this process opened.
            job: where they go.
            parts: in order.
            zero: the source's time that is 0 in the film.
            identity: of the job.
            on_frames: hears how many of the frames are made.

        Raises:
            UserError: a part cannot be made.
        """
        ray = self._ray
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        here = strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        count = ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(_Count).remote()
        agreed = {name: identity[name] for name in _SAME}
        source = ray.put(_content(film.source.path)) if self._send_source else None
        folder = None if self._send_source else job.path.absolute()
        waiting = {
            self._make.remote(self._order, part, folder, zero, agreed, self._threads, source, count): part
            for part in parts
        }
        finished = 0
        try:
            while waiting:
                with _asking:
                    if not ray.is_initialized():
                        raise UserError("Ray was stopped")
                    done, _ = ray.wait(list(waiting), timeout=_TELL_SECONDS)
                    for task in done:
                        part = waiting.pop(task)
                        self._finish(job, part, ray.get(task))
                        finished += len(part)
                    running: dict[int, int] = {}
                    with suppress(ray.exceptions.RayError):  # the machine of the count died: it begins anew
                        running = ray.get(count.frames.remote()) if waiting else {}
                on_frames(finished + sum(running.get(part.first, 0) for part in waiting.values()))
        except ray.exceptions.RayError as error:
            raise UserError(f"Ray: {_one_line(error)}") from None
        finally:
            for task in waiting if ray.is_initialized() else ():
                ray.cancel(task, force=True)

    def _finish(self, job: JobFolder, part: Part, outcome: _Outcome) -> None:
        if outcome.problem:
            raise UserError(outcome.problem)
        if self._send_source:
            with scratch_folder(job.path, about=self._order.target) as folder:
                path = folder / job.file(part).name
                path.write_bytes(outcome.content)
                job.commit(part, path, outcome.digest)
        elif job.record(part) is None:
            raise UserError(f"{job.file(part)} is not seen here; the machines share no such folder: give --send-source")


def _start_here(ray: Any, **options: object) -> None:
    """Start Ray on this machine. It gives its processes 30 s to start, which a busy machine may exceed."""
    for attempt in range(_STARTS):
        try:
            ray.init("local", **options)
            return
        except Exception:
            ray.shutdown()
            if attempt == _STARTS - 1:
                raise


def _stop(ray: Any) -> None:
    """Leave Ray, and end its processes if they were started from here.

    On a thread that is not waited for long: this may be the handler of a signal, and a lock of Ray's held meanwhile.
    """
    stopping = threading.Thread(target=ray.shutdown, daemon=True)
    silent = _asking.acquire(timeout=_ANSWER_SECONDS)
    stopping.start()
    stopping.join(_STOP_SECONDS)
    if silent:
        _asking.release()


def _visible(gpus: Sequence[int], count: int) -> str:
    """The GPUs that Ray's processes may see, by the names that CUDA has for them."""
    absent = [gpu for gpu in gpus if gpu >= count]
    if absent:
        raise WrongArgumentError(f"--devices: there is no CUDA device {absent[0]}; this machine has {count}")
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return ",".join(names[gpu] if names != [""] else str(gpu) for gpu in gpus)


def _everywhere(order: Order, *, device_index: int) -> Order:
    """The order as a process in another folder has to get it."""
    files = {name: str(path.absolute()) for name, path in order.files.items()}
    return replace(
        order,
        source=order.source.absolute(),
        target=order.target.absolute(),
        arguments={**order.arguments, **files, "device_index": device_index},
    )


class _Count:
    """How many frames of each part are made; an actor."""

    def __init__(self) -> None:
        self._frames: dict[int, int] = {}

    def tell(self, first: int, frames: int) -> None:
        self._frames[first] = frames

    def frames(self) -> dict[int, int]:
        return self._frames


_opened: tuple[Order, Opened] | None = None
"""What this process has open: all parts of a film that it makes come from one."""

_sent: tempfile.TemporaryDirectory[str] | None = None
"""Where the source is that was sent, for as long as this process lasts."""


def _describe(order: Order, threads: int) -> str:
    """The device that a process computes on."""
    _limit(threads)
    return describe_device(order)


def _limit(threads: int) -> None:
    """Have torch, which is not loaded yet, compute with so many CPU threads."""
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def _make(
    order: Order,
    part: Part,
    folder: Path | None,
    zero: int,
    agreed: Identity,
    threads: int,
    source: tuple[bytes, int] | None,
    count: Any,
) -> _Outcome:
    """Make one part, in a process of Ray's.

    Args:
        order: what it is a part of.
        part: which.
        folder: the job's, None if the part is to be returned.
        zero: the source's time that is 0 in the film.
        agreed: of the job's identity, what must be so here.
        threads: of the CPU, 0 on a GPU.
        source: content and time of the source, if it is sent.
        count: the actor that hears of frames.
    """
    _limit(threads)
    try:
        if folder is not None and not (folder / "job.json").is_file():
            raise UserError(f"{folder} is not seen on {platform.node()}; share it, or give --send-source")
        opened = _open(order, source)
        film = opened.film
        own = identify(order, opened, describe_device(order))
        # Weights that a machine lacks are not those that it needs: it would have said so. Files that are given are.
        optional = {name: digest for name, digest in _weights(agreed).items() if name not in order.arguments}
        own["weights"] = optional | {name: digest for name, digest in _weights(own).items() if name in _weights(agreed)}
        changed = differences(agreed, {name: own[name] for name in agreed})
        if changed:
            raise UserError(f"a machine of the cluster would give another film: {'; '.join(changed)}")
        told, frames = time.monotonic(), 0

        def on_frames(made: int) -> None:
            nonlocal told, frames
            frames = made
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                count.tell.remote(part.first, frames)

        if folder is not None:
            make_parts(
                order, film, JobFolder(folder, part_suffix(order.target)), [part], zero=zero, on_frames=on_frames
            )
            return _Outcome()
        with tempfile.TemporaryDirectory(prefix="vsvsr-") as scratch:
            job = JobFolder(Path(scratch), part_suffix(order.target))
            make_parts(order, film, job, [part], zero=zero, on_frames=on_frames)
            record = job.record(part)
            assert record is not None
            return _Outcome(content=job.file(part).read_bytes(), digest=record.digest)
    except UserError as error:
        return _Outcome(problem=str(error))
    except OSError as error:
        return _Outcome(problem=explain(error))


def _weights(identity: Identity) -> Identity:
    weights = identity["weights"]
    assert isinstance(weights, dict)
    return weights


def _open(order: Order, source: tuple[bytes, int] | None) -> Opened:
    global _opened, _sent
    if _opened is None or _opened[0] != order:
        local = order
        if source is not None:
            content, changed = source
            _sent = tempfile.TemporaryDirectory(prefix="vsvsr-")
            path = Path(_sent.name, order.source.name)
            path.write_bytes(content)
            os.utime(path, ns=(changed, changed))
            local = replace(order, source=path)
        _opened = order, local.open(lambda percent: None)
    return _opened[1]


def _content(path: Path) -> tuple[bytes, int]:
    """A source as it is sent: its bytes, and when they were written."""
    if path.is_dir():
        raise UserError(f"{path} is a folder of pictures; --send-source sends one file")
    return path.read_bytes(), path.stat().st_mtime_ns


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
