"""FastReal against widely used per-frame networks, bicubic and Lanczos, on clips that none was trained on.

Each clip is degraded in several ways (Gaussian blur sigma, noise in 8-bit steps, x4 downsampling, x264 crf), enlarged
again by every method, and scored: PSNR-Y, SSIM-Y, ERQA (edges restored, 0 to 1), ColorVideoVDP (JOD, 10 = same),
flicker (the truth's own is 0), milliseconds a frame in this run. ``--sheet FOLDER`` writes crops side by side.

    python -m scripts.bench.peers bikes.mp4 bigbuckbunny.mp4 --weights run/last.safetensors
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import vapoursynth as vs
from torch import Tensor

from scripts.bench import harness
from scripts.evaluate_fastreal import degrade, open_truth, pictures
from vsvsr import weights
from vsvsr.evaluation.compare import score, sheet, to_tensor
from vsvsr.evaluation.perceptual import erqa, jod
from vsvsr.models.fastreal.flow import LightFlow
from vsvsr.models.realesrgan import load_ncnn

CASES: dict[str, tuple[float, float, int]] = {
    "mild": (0.4, 1.0, 20),
    "medium": (1.2, 3.0, 25),
    "heavy": (2.5, 5.0, 33),
    "noise 12": (0.6, 12.0, 12),
    "noise 24": (0.6, 24.0, 18),
}
"""sigma, noise, crf"""
SKIPPED = 5
"""Frames at the start that are not judged: the recurrence warms up."""
PEERS = ("realesr-animevideov3", "realesrgan-x4plus")
SCORES = ("PSNR-Y", "SSIM-Y", "ERQA", "JOD", "flicker", "ms")

type Enlarge = Callable[[vs.VideoNode], Iterator[Tensor]]
"""A small RGBS clip to its large frames ``(3, h, w)`` in [0, 1]."""


def by_filter(call: Callable[[vs.VideoNode], vs.VideoNode]) -> Enlarge:
    """A method that is a VapourSynth filter."""

    def enlarge(small: vs.VideoNode) -> Iterator[Tensor]:
        for picture in pictures(call(small)):
            yield to_tensor(picture[None])[0]

    return enlarge


def by_network(name: str) -> Enlarge:
    """A published per-frame network in fp32, without VapourSynth around it."""
    network = load_ncnn(name, weights.verify(name)).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def enlarge(small: vs.VideoNode) -> Iterator[Tensor]:
        for frame in harness.tensors(small):
            yield network(frame[None].contiguous(memory_format=torch.channels_last))[0].clamp(0, 1)

    return enlarge


def methods(files: dict[str, Path]) -> dict[str, Enlarge]:
    """All that are compared, by name."""

    def size(clip: vs.VideoNode) -> dict[str, int]:
        return {"width": 4 * clip.width, "height": 4 * clip.height}

    found: dict[str, Enlarge] = {
        "bicubic": by_filter(lambda clip: clip.resize.Bicubic(**size(clip), filter_param_a=0, filter_param_b=0.5)),
        "Lanczos": by_filter(lambda clip: clip.resize.Lanczos(**size(clip))),
        **{name: by_network(name) for name in PEERS},
        "FastReal": by_filter(lambda clip: clip.vsvsr.FastReal()),
    }
    for name, path in files.items():
        found[name] = by_filter(lambda clip, path=path: clip.vsvsr.FastReal(model_path=str(path)))  # type: ignore[misc]
    return found


def compare(arguments: argparse.Namespace, results: harness.Results) -> None:
    """Scores of every method on every clip in every case, then their means over all of these."""
    chosen = methods({path.stem if path.stem != "last" else path.parent.name: path for path in arguments.weights})
    chosen = {name: method for name, method in chosen.items() if not arguments.methods or name in arguments.methods}
    rows: dict[str, list[dict[str, float]]] = {method: [] for method in chosen}
    flow = LightFlow().requires_grad_(False)
    for path in arguments.clips:
        film = open_truth(path)[arguments.first : arguments.first + arguments.frames]
        truth = to_tensor(np.stack(list(pictures(film))))
        for case in arguments.cases:
            outputs: dict[str, Tensor] = {}
            with tempfile.TemporaryDirectory() as folder:
                small = degrade(film, CASES[case], "area", Path(folder) / "small.mkv", scale=4)
                for method, enlarge in chosen.items():
                    frames, time = harness.timed(partial(list[Tensor], enlarge(small)))
                    outputs[method] = torch.stack(frames)
                    judged, reference = outputs[method][SKIPPED:], truth[SKIPPED:]
                    scores = score(judged, reference, flow)
                    values = (scores.psnr_y, scores.ssim_y, erqa(judged, reference), jod(judged, reference))
                    figures = (*values, scores.flicker, 1e3 * time.wall / len(truth))
                    rows[method].append(dict(zip(SCORES, figures, strict=True)))
                    results.add(f"{path.stem}, {case}, {method}", rows[method][-1])
            if arguments.sheet is not None:
                arguments.sheet.mkdir(parents=True, exist_ok=True)
                height, width = truth.shape[-2:]
                crop = (max(width - 360, 0) // 2, max(height - 270, 0) // 2, min(width, 360), min(height, 270))
                picture = sheet({**outputs, "truth": truth}, frames=[len(truth) - 1], crop=crop)
                picture.save(arguments.sheet / f"{path.stem}-{case.replace(' ', '-')}.png")
    for method, found in rows.items():
        results.add(f"mean, {method}", {name: statistics.mean(row[name] for row in found) for name in SCORES})


def main() -> None:
    """The command line."""
    parser = harness.arguments(__doc__)
    parser.add_argument("clips", type=Path, nargs="+", help="videos of good quality")
    parser.add_argument("--weights", type=Path, nargs="*", default=[], help="more FastReal files to compare")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--methods", nargs="*", help="only these")
    parser.add_argument("--first", type=int, default=40, help="first frame")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--sheet", type=Path, help="folder for crops side by side")
    arguments = parser.parse_args()
    compare(arguments, harness.Results("peers", arguments.csv))


if __name__ == "__main__":
    main()
