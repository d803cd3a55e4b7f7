"""Degrades clips, enlarges them again with bicubic, Lanczos and FastReal through VapourSynth, and prints the scores.

Give clips that the weights were not trained on; they are scaled to sides that are multiples of 8. Degradation:
Gaussian blur (sigma), noise of 8-bit standard deviation (noise), x4 downsampling, x264 (crf); for x2 half of the blur
and of the noise, which leaves as much of them in the small frames. With --twin, weights that were trained without a
state are run without one too. With --drift, PSNR-Y and NIQE of every frame of a moving clip and of a still one are
written as CSV instead. Needs the extras cli and train.
"""

import argparse
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import imageio_ffmpeg
import numpy as np
import torch
import vapoursynth as vs
from scipy.ndimage import gaussian_filter
from torch import Tensor

from scripts.bench import harness
from vsvsr.evaluation.compare import Scores, frame_scores, mean_niqe, score, to_tensor
from vsvsr.models.fastreal.flow import LightFlow
from vsvsr.training.data.degradation import Resize, downsample

CASES = ((0.4, 1.0, 20), (1.2, 3.0, 25), (2.5, 5.0, 33))
"""sigma, noise, crf, for x4"""
DRIFT_CASE = CASES[1]
SKIPPED = 5
"""Frames at the start that are not judged: the recurrence warms up."""
Motion = Literal["own", "slow", "still"]
COLUMNS = ("PSNR-Y", "PSNR", "SSIM-Y", "SSIM", "flicker", "NIQE")


def pictures(clip: vs.VideoNode) -> Iterator[np.ndarray]:
    """Frames ``(h, w, 3)`` uint8 of an RGB clip."""
    for frame in clip.resize.Point(format=vs.RGB24).frames(close=True):
        yield np.stack([np.asarray(frame[plane]) for plane in range(3)], axis=-1)


def open_truth(path: Path) -> vs.VideoNode:
    """The video as RGB24, sides multiples of 8."""
    clip = harness.open_clip(path)
    width, height = (side // 8 * 8 for side in (clip.width, clip.height))
    return clip.resize.Bicubic(width=width, height=height, format=vs.RGB24)


def with_motion(film: vs.VideoNode, motion: Motion) -> vs.VideoNode:
    """The film itself, its middle frame standing still, or a slow pan over that: one pixel a frame to the right."""
    if motion == "own":
        return film
    middle = film[len(film) // 2]
    if motion == "still":
        return middle * len(film)
    width = (film.width - len(film)) // 8 * 8
    return vs.core.std.Splice([middle.std.CropAbs(width, film.height, left=left) for left in range(len(film))])


def degrade(
    truth: vs.VideoNode, case: tuple[float, float, int], resize: Resize, path: Path, *, scale: int
) -> vs.VideoNode:
    """Smaller by ``scale``, blurred, noisy and compressed to ``path``; returned as RGBS."""
    sigma, noise, crf = case[0] * scale / 4, case[1] * scale / 4, case[2]
    rng = np.random.default_rng(1)
    size = f"{truth.width // scale}x{truth.height // scale}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size]
    command += ["-r", "25", "-i", "-", "-vf", "scale=out_color_matrix=bt709", "-colorspace", "bt709"]
    command += ["-c:v", "libx264", "-crf", str(crf)]
    encoder = subprocess.Popen([*command, "-pix_fmt", "yuv420p", str(path)], stdin=subprocess.PIPE)
    assert encoder.stdin is not None
    for frame in pictures(truth):
        colours = [gaussian_filter(frame[..., i].astype(np.float32), sigma, truncate=4) for i in range(3)]
        noisy = torch.from_numpy(np.stack(colours) + rng.normal(0, noise, frame.shape).transpose(2, 0, 1))
        small = downsample(noisy[None], scale, resize)[0].round().clamp(0, 255).byte()
        encoder.stdin.write(small.permute(1, 2, 0).contiguous().numpy().tobytes())
    encoder.stdin.close()
    if encoder.wait():
        raise SystemExit("ffmpeg failed, see above")
    return harness.open_clip(path)


def enlarged(small: vs.VideoNode, scale: int, weights: Path | None, twin: Path | None) -> dict[str, vs.VideoNode]:
    """What is compared."""
    size = {"width": scale * small.width, "height": scale * small.height}
    given = {"model": f"fastreal-compact-x{scale}"} if weights is None else {"model_path": str(weights)}
    clips = {
        "bicubic": small.resize.Bicubic(**size, filter_param_a=0, filter_param_b=0.5),
        "Lanczos": small.resize.Lanczos(**size),
        "FastReal": small.vsvsr.FastReal(**given),
    }
    if twin is not None:
        # A restart at every frame: the state is always zero.
        clips["twin"] = small.vsvsr.FastReal(model_path=str(twin), segment=1, warmup=0)
    return clips


def tensor(clip: vs.VideoNode) -> Tensor:
    """The judged frames, ``(t, 3, h, w)``."""
    return to_tensor(np.stack(list(pictures(clip))[SKIPPED:]))


def print_table(arguments: argparse.Namespace) -> None:
    """Scores of every clip in every case, then what FastReal gains on bicubic and on its twin."""
    first, frames, scale = arguments.first, arguments.frames or 12, arguments.scale
    print(f"x{scale}, {arguments.downsampling} downsampling, {arguments.motion} motion,", end=" ")
    print(f"{frames} frames from frame {first}, the first {SKIPPED} not judged;", end=" ")
    print("NIQE of the first, the middle and the last one")
    print(f"{'clip':16}{'sigma noise crf':17}{'':10}" + "".join(f"{name:>9}" for name in COLUMNS))
    flow = LightFlow().requires_grad_(False)
    all_scores: list[dict[str, Scores]] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in arguments.clips:
            film = with_motion(open_truth(path)[first : first + frames], arguments.motion)
            truth = tensor(film)
            for case in CASES:
                small = degrade(
                    film, case, arguments.downsampling, Path(folder) / f"{len(all_scores)}.mkv", scale=scale
                )
                all_scores.append({})
                for method, clip in enlarged(small, scale, arguments.weights, arguments.twin).items():
                    result = tensor(clip)
                    scores = all_scores[-1][method] = score(result, truth, flow)
                    quality = f"{mean_niqe(result):9.3f}" if min(result.shape[-2:]) >= 192 else f"{'':9}"
                    print(
                        f"{path.stem[:15]:16}{'{:<6}{:<6}{}'.format(*case):17}{method:10}{scores.psnr_y:9.3f}"
                        f"{scores.psnr_rgb:9.3f}{scores.ssim_y:9.4f}{scores.ssim_rgb:9.4f}{scores.flicker:9.3f}{quality}",
                        flush=True,
                    )
    for other in ("bicubic", "Lanczos", "twin"):
        for name in ("psnr_y", "psnr_rgb", "ssim_y", "flicker"):
            gains = [getattr(row["FastReal"], name) - getattr(row[other], name) for row in all_scores if other in row]
            if gains:
                better = sum(gain < 0 if name == "flicker" else gain > 0 for gain in gains)
                print(
                    f"FastReal minus {other}, {name}: mean {statistics.mean(gains):+.4f}, "
                    f"{min(gains):+.4f} to {max(gains):+.4f}, better in {better} of {len(gains)}"
                )


def write_drift(arguments: argparse.Namespace) -> None:
    """Scores of every frame, and a line for each clip: the first and the last twenty judged frames."""
    target, resize, scale = arguments.drift, arguments.downsampling, arguments.scale
    target.mkdir(parents=True, exist_ok=True)
    print("{} downsampling, sigma {}, noise {}, crf {}".format(resize, *DRIFT_CASE))
    for path in arguments.clips:
        film = open_truth(path)[: arguments.frames or 120]
        for kind in ("own", "still"):
            truth = with_motion(film, kind)
            table = target / f"{path.stem}-{kind}.csv"
            lines = ["clip,frame,psnr_y,niqe"]
            with tempfile.TemporaryDirectory() as folder:
                small = degrade(truth, DRIFT_CASE, resize, Path(folder) / "small.mkv", scale=scale)
                clips = enlarged(small, scale, arguments.weights, None)
                for method in ("bicubic", "FastReal"):
                    result, reference = (
                        (to_tensor(frame[None])[0] for frame in pictures(clip)) for clip in (clips[method], truth)
                    )
                    rows = list(frame_scores(result, reference))
                    for frame, row in enumerate(rows):
                        lines.append(f"{method},{frame}," + ",".join("" if v is None else f"{v:.4f}" for v in row))
                    ends = []
                    for part in (rows[SKIPPED : SKIPPED + 20], rows[-20:]):
                        columns = [[v for v in column if v is not None] for column in zip(*part, strict=True)]
                        ends.append([statistics.mean(column) for column in columns if column])
                    (begin, end) = ends
                    change = ", ".join(
                        f"{name} {a:.3f} to {b:.3f}" for name, a, b in zip(("PSNR-Y", "NIQE"), begin, end, strict=False)
                    )
                    print(f"{path.stem}, {kind} motion, {len(rows)} frames, {method}: {change}", flush=True)
            table.write_text("\n".join(lines) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="+", help="videos of good quality")
    parser.add_argument("--scale", type=int, choices=(2, 4), default=4)
    parser.add_argument("--weights", type=Path, help="of FastReal, for this scale; default: the shipped ones")
    parser.add_argument("--twin", type=Path, help="weights that were trained with --stateless, for the table")
    parser.add_argument("--motion", choices=get_args(Motion), default="own", help="of the clips in the table")
    parser.add_argument("--downsampling", choices=get_args(Resize), default="area")
    parser.add_argument("--first", type=int, default=40, help="first frame of the table")
    parser.add_argument("--frames", type=int, help="default: 12 for the table, 120 with --drift")
    parser.add_argument("--drift", type=Path, metavar="FOLDER", help="write scores of every frame there instead")
    arguments = parser.parse_args()
    with torch.no_grad():
        if arguments.drift is not None:
            write_drift(arguments)
        else:
            print_table(arguments)


if __name__ == "__main__":
    main()
