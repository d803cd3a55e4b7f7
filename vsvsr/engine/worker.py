"""The thread that makes all torch calls of a device."""

import queue
import threading
from collections.abc import Callable
from typing import cast

import torch

from vsvsr.engine.threads import brief_waits


class _Job[Result]:
    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self._finished = threading.Lock()
        self._finished.acquire()
        self._result: Result | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error
        self._finished.release()

    def result(self) -> Result:
        with self._finished:
            if self._error is not None:
                error, self._error = self._error, None
                try:
                    raise error
                finally:
                    # Its traceback leads here and to the tensors in use when it was raised: no cycle may keep them.
                    del error
            return cast("Result", self._result)


class Worker:
    """One daemon thread: cuDNN plans and CUDA graphs belong to a thread, and two busy CPU teams slow each other down.

    Started when the first filter of a device is created: a thread started while the interpreter shuts down fails.

    Python's garbage collector runs on any thread between any two instructions, this one included, and then calls
    whatever destructors it finds: a filter's, its user's. So ``run`` on the thread itself calls directly, and a
    destructor may ``post``, which never waits, but never ``run``.

    Args:
        device: that all its jobs use.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._jobs: queue.SimpleQueue[_Job[object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"vsvsr {device}", daemon=True)
        self._thread.start()

    def run[Result](self, function: Callable[[], Result]) -> Result:
        """Call ``function`` on the thread, wait, and return or raise what it did."""
        if threading.current_thread() is self._thread:
            return function()
        job = _Job(function)
        self._jobs.put(cast("_Job[object]", job))
        return job.result()

    def post(self, function: Callable[[], object]) -> None:
        """Have ``function`` called on the thread, behind all jobs before, without waiting."""
        self._jobs.put(_Job(function))

    def stop(self) -> None:
        """Finish the jobs so far and end the thread; jobs from now on are never done."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        if self._device.type == "cuda":
            # Kernels, streams and graphs go to the thread's current device.
            torch.cuda.set_device(self._device)
        with torch.inference_mode(), brief_waits():
            while (job := self._jobs.get()) is not None:
                job.run()
                del job  # or what it refers to would live until the next one comes


_workers: dict[torch.device, Worker] = {}
# Reentrant: a destructor that runs while a worker is started may create a filter.
_starting = threading.RLock()


def worker_of(device: torch.device) -> Worker:
    """The thread of ``device``, shared by all filters on it."""
    with _starting:
        if device not in _workers:
            _workers[device] = Worker(device)
        return _workers[device]


def stop_workers() -> None:
    """End the threads of all devices. Python ends a daemon thread inside torch by ending the process with SIGABRT."""
    with _starting:
        workers = list(_workers.values())
    for worker in workers:
        worker.stop()
