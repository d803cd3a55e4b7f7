"""Counters of linear playback at 8 threads, and what a restart costs in pixels on the video files that are given."""

from collections import Counter
from pathlib import Path

import vapoursynth as vs

from scripts.bench import harness
from vsvsr.evaluation.metrics import psnr

SEGMENT = 60
SHOWN = 6


def count_playback(results: harness.Results, frames: int = 500) -> None:
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
    stats = {name: float(value) for name, value in core.vsvsr.Stats(output).items() if isinstance(value, int)}
    results.add(f"{frames} frames, 8 threads", stats)
    often = sorted(Counter(rendered.values()).items())
    results.add("source frames", {f"rendered {times}x": count for times, count in often})


def restart_psnr(path: Path, warmup: int) -> dict[str, float]:
    """PSNR in dB of the first frames after a restart against a recurrence that never restarts."""
    core = vs.core.core
    clip = harness.open_clip(path)[: SEGMENT + SHOWN]
    clip = clip.resize.Bicubic(width=clip.width // 8 * 2, height=clip.height // 8 * 2, filter_param_a=0)
    restarted = core.vsvsr.FastReal(clip, segment=SEGMENT, warmup=warmup, device_index=-1)[SEGMENT:]
    endless = core.vsvsr.FastReal(clip, segment=0, device_index=-1)[SEGMENT:]
    pairs = zip(harness.tensors(restarted), harness.tensors(endless), strict=True)
    scores = [float(psnr(*(x[None].clamp(0, 1) * 255 for x in pair))) for pair in pairs]
    return {f"frame {n}, dB": value for n, value in enumerate(scores)}


def main() -> None:
    """The command line."""
    parser = harness.arguments(__doc__)
    parser.add_argument("clips", type=Path, nargs="*", help="videos in which to restart")
    arguments = parser.parse_args()
    results = harness.Results("streaming", arguments.csv)
    count_playback(results)
    for path in arguments.clips:
        for warmup in (0, 5, 10, 15, 20, 30):
            results.add(f"{path.name}, warm-up {warmup}", restart_psnr(path, warmup))


if __name__ == "__main__":
    main()
