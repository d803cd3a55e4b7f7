"""Time per frame outside the network, 320x180 to 1280x720 RGBS, against a Python filter through std.ModifyFrame.

Run with the Python of the environment in which vsvsr is installed. Prints milliseconds and ratios, all from one run.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import vapoursynth as vs

from vsvsr import weights
from vsvsr.filters.fastreal import DEFAULT_MODEL
from vsvsr.models.fastreal import load_fastreal

FRAMES = 30
ROUNDS = 3
WIDTH, HEIGHT, SCALE = 320, 180, 4


def playback(clip: vs.VideoNode) -> float:
    """Milliseconds a frame in linear playback."""
    clip.clear_cache()
    start = time.perf_counter()
    for frame in clip.frames(prefetch=1, close=True):
        assert frame.width == WIDTH * SCALE
    return (time.perf_counter() - start) * 1000 / clip.num_frames


def bare_network() -> Callable[[], float]:
    """Milliseconds a frame of the network alone: tensors in, a tensor out."""
    network = load_fastreal(weights.find(DEFAULT_MODEL))
    frame = torch.full((1, 3, HEIGHT, WIDTH), 0.5).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def measure() -> float:
        hidden = network.propagate(frame, None, None)
        start = time.perf_counter()
        for _ in range(FRAMES):
            hidden = network.propagate(frame, frame, hidden)
            network.reconstruct(hidden, frame)
        return (time.perf_counter() - start) * 1000 / FRAMES

    return measure


def python_filter(core: vs.Core) -> vs.VideoNode:
    """The usual way to write a filter in Python, which here only copies a finished picture into the frame."""
    picture = np.random.default_rng(0).random((3, HEIGHT * SCALE, WIDTH * SCALE), dtype=np.float32)
    large = core.std.BlankClip(width=WIDTH * SCALE, height=HEIGHT * SCALE, format=vs.RGBS, length=FRAMES, keep=True)

    def modify(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        output = f.copy()
        for plane in range(3):
            np.copyto(np.asarray(output[plane]), picture[plane])
        return output

    return large.std.ModifyFrame(large, modify)


def main() -> None:
    """Print the table: medians over interleaved rounds."""
    core = vs.core.core
    source = core.std.BlankClip(width=WIDTH, height=HEIGHT, format=vs.RGBS, length=FRAMES, color=[0.5] * 3, keep=True)
    network = bare_network()
    modify = python_filter(core)
    rounds = [
        (playback(core.vsvsr.FastReal(source, device_index=-1)), network(), playback(modify)) for _ in range(ROUNDS)
    ]
    total, bare, copied = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"FastReal through VapourSynth   {total:8.2f} ms a frame")
    print(f"the network alone              {bare:8.2f} ms")
    print(f"outside the network            {total - bare:8.2f} ms, {1 - bare / total:.1%} of the whole")
    print(f"std.ModifyFrame with a copy    {copied:8.2f} ms")
    print(f"outside the network / std.ModifyFrame: {(total - bare) / copied:.2f}")


if __name__ == "__main__":
    main()
