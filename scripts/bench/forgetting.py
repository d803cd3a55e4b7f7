"""How fast weights of FastReal forget: a cold start k frames earlier against an endless recurrence.

A seam is what a restart with a warm-up of k frames changes: PSNR (RGB) at the first frame after it, over some
positions of each clip, as it is and with noise. Choose the smallest warm-up whose worst seam is above 60 dB, and as
`segment` the shortest for which the warm-ups cost at most 6 %; give both to the export as ``restarts`` in --metadata.

    python -m scripts.bench.forgetting bikes.mp4 bigbuckbunny.mp4 --weights run/last.safetensors
"""

from pathlib import Path

import numpy as np
import torch
import vapoursynth as vs

from scripts.bench import harness
from scripts.bench.peers import open_truth
from vsvsr.evaluation.metrics import psnr

WARMUPS = (0, 1, 2, 3, 4, 6, 8, 12)
WIDTH = 160
NOISES = (0.0, 12.0)
"""Standard deviation in 8-bit steps."""
FIRST, POSITIONS = 20, (16, 27, 39)


def with_noise(clip: vs.VideoNode, deviation: float) -> vs.VideoNode:
    """Gaussian noise that depends on the number of the frame alone."""

    def add(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        noisy = f.copy()
        rng = np.random.default_rng(n)
        for plane in range(3):
            samples = np.asarray(noisy[plane])
            samples += rng.normal(0, deviation / 255, samples.shape)
        return noisy

    return clip.std.ModifyFrame(clip, add)


def last(clip: vs.VideoNode, weights: Path | None) -> torch.Tensor:
    """The last frame of an endless recurrence over the clip, on the scale 0 to 255."""
    given = {} if weights is None else {"model_path": str(weights)}
    (frame,) = harness.tensors(clip.vsvsr.FastReal(segment=0, **given)[-1])
    return 255 * frame[None]


def main() -> None:
    """The command line."""
    parser = harness.arguments(__doc__)
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--weights", type=Path, help="default: those of the filter")
    arguments = parser.parse_args()
    results = harness.Results("forgetting", arguments.csv)
    worst: dict[int, float] = {}
    for path in arguments.clips:
        film = open_truth(path)[FIRST:]
        height = round(film.height * WIDTH / film.width)
        small = film.resize.Bicubic(width=WIDTH, height=height, format=vs.RGBS)
        for noise in NOISES:
            clip = with_noise(small, noise) if noise else small
            seams: dict[int, list[float]] = {warmup: [] for warmup in WARMUPS}
            for n in POSITIONS:
                exact = last(clip[: n + 1], arguments.weights)
                for warmup, found in seams.items():
                    cold = last(clip[n - warmup : n + 1], arguments.weights)
                    found.append(float(psnr(cold, exact)))
            for warmup, found in seams.items():
                worst[warmup] = min(worst.get(warmup, np.inf), *found)
                results.add(f"{path.stem}, noise {noise:.0f}, warm-up {warmup}", {"seam in dB": min(found)})
    for warmup, seam in worst.items():
        results.add(f"worst, warm-up {warmup}", {"seam in dB": seam, "segment": np.ceil(warmup / 0.06)})


if __name__ == "__main__":
    main()
