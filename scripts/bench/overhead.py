"""Time per frame outside the network, 320x180 to 1280x720 RGBS, against a Python filter through std.ModifyFrame."""

import statistics

import numpy as np
import torch
import vapoursynth as vs

from scripts.bench import harness
from vsvsr import weights
from vsvsr.filters.fastreal import DEFAULT_MODEL
from vsvsr.models.fastreal import load

FRAMES = 30
WIDTH, HEIGHT, SCALE = 320, 180, 4


def playback(clip: vs.VideoNode) -> harness.Measure:
    """Measure linear playback."""

    def measure() -> float:
        clip.clear_cache()
        return harness.timed(lambda: sum(frame.width for frame in clip.frames(prefetch=1, close=True)))[1].wall

    return measure


def bare_network() -> harness.Measure:
    """Measure the network alone: tensors in, a tensor out."""
    network = load(weights.find(DEFAULT_MODEL)).network
    frame = torch.full((1, 3, HEIGHT, WIDTH), 0.5).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> None:
        hidden = network.propagate(frame, None, None)
        for _ in range(FRAMES - 1):
            network.reconstruct(hidden, frame)
            hidden = network.propagate(frame, frame, hidden)
        network.reconstruct(hidden, frame)

    return harness.wall(run)


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


def compare(results: harness.Results, rounds: int) -> None:
    """Milliseconds a frame, and what the filter adds to its network against what a filter in Python costs."""
    core = vs.core.core
    source = core.std.BlankClip(width=WIDTH, height=HEIGHT, format=vs.RGBS, length=FRAMES, color=[0.5] * 3, keep=True)
    measures = {
        "through VapourSynth": playback(core.vsvsr.FastReal(source, device_index=-1)),
        "network alone": bare_network(),
        "std.ModifyFrame": playback(python_filter(core)),
    }
    times = harness.in_turn(measures, rounds)
    for name in measures:
        results.add(name, {"ms a frame": times.median(name) * 1e3 / FRAMES})
    columns = zip(*times.seconds.values(), strict=True)
    outside, share, ratio = zip(*((a - b, 1 - b / a, (a - b) / c) for a, b, c in columns), strict=True)
    results.add("outside the network", {"ms a frame": statistics.median(outside) * 1e3 / FRAMES})
    results.add(
        "outside the network",
        {"% of the whole": statistics.median(share) * 100, "to ModifyFrame": statistics.median(ratio)},
    )


def main() -> None:
    """The command line."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    compare(harness.Results("overhead", arguments.csv), arguments.rounds)


if __name__ == "__main__":
    main()
