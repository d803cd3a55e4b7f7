"""Memory does not grow with the length of the clip, and comes back when a filter is gone."""

import subprocess
import sys

import pytest

from tests.cases import CASES, WeightsOf
from vsvsr.filters.registry import FILTERS

SOURCE_FRAME = 48 * 32 * 3 * 4
"""Bytes of the smallest thing that a frame could leave behind."""

COUNT = """
import ctypes, gc, sys, time
from pathlib import Path

import torch
import vapoursynth as vs

from tests.cases import CASES, maker
from vsvsr.bridge import FilterInstance
from vsvsr.engine.worker import worker_of

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
Mallinfo2 = type("Mallinfo2", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in NAMES]})
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Mallinfo2

def allocated():
    # A thread of the host may keep the last picture for a moment.
    return min(allocated_now() for _ in range(5))

def allocated_now():
    # What nobody refers to is freed, on the device thread too, and the host's caches are emptied.
    time.sleep(0.02)
    gc.collect()
    worker_of(torch.device("cpu")).run(lambda: None)
    vs.core.clear_cache()
    info = libc.mallinfo2()
    return info.uordblks + info.hblkhd

name, weights = sys.argv[1], Path(sys.argv[2])
make = maker(name, weights)
gc.freeze()  # collections look at what comes from here on
period, periods = CASES[name].restarts[0], 10
# Longer than is played: a last chunk may run other tiles, and oneDNN keeps what it compiles for each number; and what
# looks ahead has the same to look at in every period.
length = period * (periods + 6)
clip = vs.core.std.BlankClip(width=48, height=32, format=vs.RGBS, length=length, color=[0.2, 0.5, 0.7])

def play(output, numbers):
    for future in [output.get_frame_async(n) for n in numbers]:
        future.result().close()
"""

WATCH = """
output = make(clip)
for k in range(periods):
    play(output, range(k * period, (k + 1) * period))
    print(allocated())
"""

# As if every frame left one source frame behind.
LEAK = """
left, get_frame_async = [], vs.VideoNode.get_frame_async
plain = play

def play(output, numbers):
    plain(output, numbers)
    left.extend(vs.core.std.BlankClip(clip, keep=False).get_frame(n).copy() for n in numbers)
"""

REPEAT = """
for _ in range(periods + 6):  # the first ones fill what Python and the host keep for good
    output = make(clip[:period])  # no longer: a filter may have to see all of it
    play(output, range(3))
    del output
    for _ in range(1000):  # a thread of the host may be the last to refer to it
        if not any(type(thing) is FilterInstance for thing in gc.get_objects()):
            break
        time.sleep(0.01)
    print(allocated())
print(sum(type(thing) is FilterInstance for thing in gc.get_objects()))
"""


def measured(code: str, name: str, weights_of: WeightsOf) -> list[int]:
    """What a process of its own prints; `allocated` counts every byte that the C library has given out."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT + code, name, str(weights_of(name))], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_no_byte_is_left_behind_by_a_frame(name: str, weights_of: WeightsOf) -> None:
    sizes = measured(WATCH, name, weights_of)
    frames = 3 * CASES[name].restarts[0]
    assert sizes[-1] - sizes[-4] < 0.05 * SOURCE_FRAME * frames


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_one_source_frame_left_behind_by_each_frame_would_be_seen(name: str, weights_of: WeightsOf) -> None:
    sizes = measured(LEAK + WATCH, name, weights_of)
    assert sizes[-1] - sizes[-4] > 0.9 * SOURCE_FRAME * 3 * CASES[name].restarts[0]


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_filters_that_are_gone_give_their_memory_back(name: str, weights_of: WeightsOf) -> None:
    *sizes, alive = measured(REPEAT, name, weights_of)
    assert alive == 0
    assert sizes[-1] - sizes[-6] < 5 * 5_000
