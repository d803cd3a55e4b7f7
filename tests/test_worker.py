"""The device thread."""

import threading
from collections.abc import Iterator

import pytest
import torch

from vsvsr.engine.worker import Worker, worker_of


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(torch.device("cpu"))
    yield worker
    worker.stop()


def test_run_gives_the_result_and_raises_the_error_of_the_call(worker: Worker) -> None:
    assert worker.run(lambda: 6 * 7) == 42
    with pytest.raises(ZeroDivisionError):
        worker.run(lambda: 1 // 0)


def test_run_on_the_thread_itself_calls_directly() -> None:
    worker = Worker(torch.device("cpu"))  # not stopped: that would wait for ever, should this fail
    done: list[int] = []
    caller = threading.Thread(
        target=lambda: done.append(worker.run(lambda: worker.run(threading.get_ident))), daemon=True
    )
    caller.start()
    caller.join(timeout=10)
    assert len(done) == 1
    assert done == [worker.run(threading.get_ident)]


def test_threads_that_ask_for_a_device_at_once_share_one_worker() -> None:
    device = torch.device("cpu", 7)
    barrier = threading.Barrier(16)
    workers: list[Worker] = []

    def ask() -> None:
        barrier.wait()
        workers.append(worker_of(device))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(workers) == 16
    assert len(set(workers)) == 1
    assert [thread.name for thread in threading.enumerate()].count(f"vsvsr {device}") == 1
