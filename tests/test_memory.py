"""Memory does not grow with the length of the clip."""

import os
import subprocess
import sys

import pytest

from tests.cases import CASES, WeightsOf
from vsvsr.filters.registry import FILTERS

MEASURE = """
import gc, sys
import psutil
import torch
import vapoursynth as vs
from pathlib import Path
from tests.cases import CASES, maker
from vsvsr.engine.worker import worker_of

def resident():
    gc.collect()
    # Filters that are gone are let go of on the device's thread; that has come to its end when this has.
    worker_of(torch.device("cpu")).run(lambda: None)
    return psutil.Process().memory_info().rss

name, weights, frames = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
make = maker(name, weights)
clip = vs.core.std.BlankClip(width=64, height=48, format=vs.RGBS, length=frames, color=[0.2, 0.5, 0.7])
"""

PLAY = """
output = make(clip)
"""

# As many frames of that size through VapourSynth alone, which keeps a little of each.
BASELINE = """
output = clip.resize.Point(width=64 * CASES[name].scale, height=48 * CASES[name].scale)
"""

WATCH = """
for n, frame in enumerate(output.frames(prefetch=4, close=True)):
    if n == frames // 10:
        early = resident()
print(early, resident())
"""

REPEAT = """
def once():
    output = make(clip)
    for n in range(5):
        output.get_frame(n).close()

for _ in range(3):
    once()
early = resident()
for _ in range(15):
    once()
print(early, resident())
"""


def measured(code: str, name: str, weights_of: WeightsOf) -> tuple[int, int]:
    """Bytes resident early and late, in a process whose C library returns freed frames to the system at once.

    With its usual settings glibc keeps them in lists that grow for a thousand frames, under VapourSynth's own filters
    too, and hides what is still in use.
    """
    weights = weights_of(name)
    command = [sys.executable, "-c", MEASURE + code, name, str(weights), str(CASES[name].long)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    early, late = done.stdout.split()
    return int(early), int(late)


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_resident_size_after_a_long_clip_is_that_after_a_tenth_of_it(name: str, weights_of: WeightsOf) -> None:
    early, late = measured(PLAY + WATCH, name, weights_of)
    before, after = measured(BASELINE + WATCH, name, weights_of)
    assert (late - early) - (after - before) <= 0.03 * early


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_filters_that_are_gone_give_their_memory_back(name: str, weights_of: WeightsOf) -> None:
    early, late = measured(REPEAT, name, weights_of)
    assert late <= 1.03 * early
