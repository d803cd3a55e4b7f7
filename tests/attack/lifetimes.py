"""Filters created, used and dropped on several threads at once."""

import gc
import random
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
import vapoursynth as vs

from tests.attack.orders import compare
from tests.attack.setups import FRAMES, Pool, Setup
from tests.attack.tally import DifferenceError, Tally
from vsvsr.bridge import FilterInstance
from vsvsr.engine.worker import worker_of

LIVES = 4

type Asked = tuple[Setup, int, Future[vs.VideoFrame]]


def attack(pool: Pool, rng: random.Random, tally: Tally) -> None:
    """One round: threads that each open filters one after the other, and share one; then nothing is left."""
    vs.core.core.num_threads = rng.choice((1, 2, 4, 8))
    threads = rng.choice((2, 4, 8))
    # What other tests of this process have left is not counted.
    before, threads_before = weakref.WeakSet(_filters()), _threads()
    shared = pool.draw(rng, sure=True)
    output = pool.open(shared, pool.clip(shared.size, shared.cuts))
    lives = [[(pool.draw(rng, sure=True), rng.random()) for _ in range(LIVES)] for _ in range(threads)]
    for setup in {shared, *(setup for life in lives for setup, _ in life)}:
        pool.reference(setup)
    with ThreadPoolExecutor(threads) as executor:
        running = [executor.submit(_live, pool, life, shared, output, tally) for life in lives]
        late = [asked for future in running for asked in future.result()]
    del output
    while late:
        setup, n, frame = late.pop()
        compare(setup, n, frame, pool.reference(setup), tally)
    # The second collection is behind what the first one's destructors have posted.
    for _ in range(2):
        worker_of(torch.device("cpu")).run(gc.collect)
    for _ in range(1000):  # a thread of the host may be the last to refer to one
        left = sum(one not in before for one in _filters())
        if not left:
            break
        time.sleep(0.01)
    if left:
        raise DifferenceError(f"{left} filters are left although nobody uses them")
    alive = [thread.name for thread in _threads() if thread not in threads_before or thread.name == "vsvsr cpu"]
    if alive != ["vsvsr cpu"]:
        raise DifferenceError(f"the device threads are {alive}")


def _filters() -> list[FilterInstance]:
    return [thing for thing in gc.get_objects() if type(thing) is FilterInstance]


def _threads() -> list[threading.Thread]:
    # "vsvsr idle" keeps a team of libgomp's; see vsvsr.engine.threads.
    return [one for one in threading.enumerate() if one.name.startswith("vsvsr ") and one.name != "vsvsr idle"]


def _live(
    pool: Pool, lives: list[tuple[Setup, float]], shared: Setup, common: vs.VideoNode, tally: Tally
) -> list[Asked]:
    late: list[Asked] = []
    for setup, seed in lives:
        rng = random.Random(seed)
        output = pool.open(setup, pool.clip(setup.size, setup.cuts))
        tally.add("filters created and dropped", len(setup.stages))
        waiting: list[Asked] = []
        for _ in range(rng.choice((0, 3, 10))):
            for one, clip in ((setup, output), (shared, common)):
                n = rng.randrange(FRAMES)
                waiting.append((one, n, clip.get_frame_async(n)))
        rng.choice(ENDS)(output)
        del output
        kept = rng.choice((0, len(waiting) // 2, len(waiting)))  # the others may come when their filter is gone
        for one, n, future in waiting[:kept]:
            compare(one, n, future, pool.reference(one), tally)
        late += waiting[kept:]
    return late


def _circle(output: vs.VideoNode) -> None:
    """Leave the filter to the garbage collector."""
    circle: list[object] = [output]
    circle.append(circle)


def _circle_freed_by_the_device(output: vs.VideoNode) -> None:
    _circle(output)
    worker_of(torch.device("cpu")).run(gc.collect)


def _circle_freed_in_passing(output: vs.VideoNode) -> None:
    _circle(output)
    worker_of(torch.device("cpu")).post(gc.collect)


ENDS: tuple[Callable[[vs.VideoNode], object], ...] = (
    lambda output: None,
    _circle,
    _circle_freed_by_the_device,
    _circle_freed_in_passing,
    lambda output: gc.collect(),
)
