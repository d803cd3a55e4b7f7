"""Random orders of requests: each frame is that of linear playback."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import Future

import vapoursynth as vs

from tests.attack.setups import FRAMES, PATIENCE, Pool, Setup
from tests.attack.tally import DifferenceError, Tally
from tests.pixels import digest

REQUESTS = 1000


def attack(pool: Pool, rng: random.Random, tally: Tally) -> None:
    """One round: up to two filters at once, or one of them twice, on sources that may be slow."""
    vs.core.core.num_threads = rng.choice((1, 2, 4, 8))
    setups = [pool.draw(rng) for _ in range(rng.choice((1, 1, 2)))]
    if rng.random() < 0.15:
        setups *= 2
    references = [pool.reference(setup) for setup in setups]
    outputs = [pool.open(setup, _source(pool, setup, rng)) for setup in setups]
    in_flight = rng.choice((1, 2, 4, 8, 20))
    waiting: list[tuple[int, int, Future[vs.VideoFrame]]] = []
    orders = [order(rng) for _ in setups]
    for _ in range(REQUESTS):
        which = rng.randrange(len(outputs))
        n = next(orders[which])
        waiting.append((which, n, outputs[which].get_frame_async(n)))
        while len(waiting) >= in_flight:
            which, n, future = waiting.pop(0)
            compare(setups[which], n, future, references[which], tally)
    for which, n, future in waiting:
        compare(setups[which], n, future, references[which], tally)
    for setup, output in zip(setups, outputs, strict=True):
        if len(setup.stages) == 1:
            stats = vs.core.vsvsr.Stats(output)
            tally.add("network steps", stats["steps"] + stats["warmup_steps"])


def _source(pool: Pool, setup: Setup, rng: random.Random) -> vs.VideoNode:
    """The setup's clip, sometimes from a source whose frames arrive late and in another order."""
    clip = pool.clip(setup.size, setup.cuts)
    if rng.random() < 0.85:
        return clip
    delays = random.Random(rng.random())

    def late(n: int) -> vs.VideoNode:
        time.sleep(delays.uniform(0, 0.004))
        return clip

    return clip.std.FrameEval(late)


def order(rng: random.Random) -> Iterator[int]:
    """Frame numbers without end: playback in both directions, scrubbing around a place, leaps."""
    n = 0
    while True:
        how = rng.choice(("forwards", "backwards", "around", "around", "same", "anywhere"))
        for _ in range(rng.randint(1, 40) if how == "around" else rng.randint(1, 10)):
            if how == "forwards":
                n += 1
            elif how == "backwards":
                n -= 1
            elif how == "around":
                n += rng.randint(-2, 2)
            n %= FRAMES
            yield n
        if how == "anywhere":
            n = rng.randrange(FRAMES)


def compare(setup: Setup, n: int, future: Future[vs.VideoFrame], reference: list[str], tally: Tally) -> None:
    """Wait for frame ``n`` and look whether it is the reference's.

    Raises:
        DifferenceError: it is another.
        TimeoutError: it does not come.
    """
    with future.result(timeout=PATIENCE) as frame:
        if frame.props.get("VSVSRApproximate", 0):
            tally.add("approximate outputs of previews, not compared")
            return
        if digest(frame) != reference[n]:
            raise DifferenceError(f"frame {n} of {setup} is not that of linear playback")
    tally.add(f"outputs compared, {setup.names}")
    tally.add("outputs compared")
