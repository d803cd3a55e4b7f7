"""Counters of linear playback at 8 threads, and what a restart costs in pixels; give video files as arguments.

Run with the Python of the environment in which vsvsr is installed.
"""

import math
import sys
from collections import Counter

import numpy as np
import vapoursynth as vs

SEGMENT = 60
SHOWN = 6


def planes(frame: vs.VideoFrame) -> np.ndarray:
    """The frame as ``(3, h, w)``."""
    return np.stack([np.asarray(frame[plane]) for plane in range(3)])


def count_playback(frames: int = 500) -> None:
    """Steps of the network and renderings of the source for a clip of ``frames`` frames, 64x48."""
    core = vs.core.core
    core.num_threads = 8
    blank = core.std.BlankClip(width=64, height=48, format=vs.RGBS, length=frames, color=[0.2, 0.5, 0.7])
    rendered: Counter[int] = Counter()

    def count(n: int) -> vs.VideoNode:
        rendered[n] += 1
        return blank

    output = core.vsvsr.FastReal(blank.std.FrameEval(count), device_index=-1)
    for frame in output.frames(prefetch=8, close=True):
        assert frame.width == 256
    stats = dict(core.vsvsr.Stats(output))
    times = Counter(rendered.values())
    print(f"{frames} frames at 8 threads: {stats}")
    print(f"source frames by how often each was rendered: {dict(times)}")


def restart_psnr(path: str, warmup: int) -> list[float]:
    """PSNR in dB of the first frames after a restart against a recurrence that never restarts."""
    core = vs.core.core
    clip = core.bs.VideoSource(path, cachemode=0)[: SEGMENT + SHOWN]
    clip = core.resize.Bicubic(
        clip,
        width=clip.width // 8 * 2,
        height=clip.height // 8 * 2,
        format=vs.RGBS,
        matrix_in_s="709",
        filter_param_a=0,
    )
    restarted = core.vsvsr.FastReal(clip, segment=SEGMENT, warmup=warmup, device_index=-1)
    endless = core.vsvsr.FastReal(clip, segment=0, device_index=-1)
    scores = []
    for n in range(SEGMENT, SEGMENT + SHOWN):
        with restarted.get_frame(n) as first, endless.get_frame(n) as second:
            error = float(np.mean((planes(first).clip(0, 1) - planes(second).clip(0, 1)) ** 2))
        scores.append(math.inf if error == 0 else -10 * math.log10(error))
    return scores


def main() -> None:
    """Print both tables."""
    count_playback()
    for path in sys.argv[1:]:
        for warmup in (0, 5, 10, 15, 20, 30):
            scores = " ".join(f"{score:6.1f}" for score in restart_psnr(path, warmup))
            print(f"{path}, warm-up {warmup:2}: {scores} dB in the frames after a restart")


if __name__ == "__main__":
    main()
