"""FastReal against bicubic, Lanczos and widely used per-frame networks, on clips that none was trained on.

Each clip, scaled to sides that are multiples of 8, is made smaller in several ways (Gaussian blur sigma, noise in 8-bit
steps, downsampling, x264 crf; for x2 half of the blur and of the noise, which leaves as much of them in the small
frames), enlarged again by every method, and scored: PSNR-Y, PSNR, SSIM-Y, ERQA (edges restored, 0 to 1), ColorVideoVDP
(JOD, 10 = same), flicker (the truth's own is 0), NIQE of the first, the middle and the last frame, CPU time a frame.
For x2 the pictures of the per-frame networks, which enlarge four times, are averaged over 2x2 pixels.
The case "undegraded" enlarges the clip itself, for the eye: give ``--sheet FOLDER``, which writes crops side by side.

With ``--twin``, weights that were trained with --stateless are run without a state too. With ``--drift FOLDER``, PSNR-Y
and NIQE of every frame of the clip, of a slow pan and of a still picture are written as CSV instead. Needs the extras
cli, train and evaluate.

    python -m scripts.bench.peers bikes.mp4 bigbuckbunny.mp4 --weights run/last.safetensors
"""

import argparse
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import imageio_ffmpeg
import numpy as np
import torch
import torch.nn.functional as F
import vapoursynth as vs
from scipy.ndimage import gaussian_filter
from torch import Tensor

from scripts.bench import harness
from vsvsr import weights
from vsvsr.evaluation.compare import frame_scores, mean_niqe, score, sheet, to_tensor
from vsvsr.evaluation.perceptual import erqa, jod
from vsvsr.models.fastreal import load
from vsvsr.models.fastreal.flow import LightFlow
from vsvsr.models.realesrgan import load_ncnn
from vsvsr.training.data.degradation import Resize, downsample


@dataclass(frozen=True)
class Damage:
    """What happens to a clip besides downsampling.

    Attributes:
        sigma: standard deviation of the blur in high-resolution pixels, for x4.
        noise: its standard deviation in 8-bit steps before the downsampling, for x4.
        crf: of x264.
    """

    sigma: float
    noise: float
    crf: int


CASES: dict[str, Damage | None] = {
    "clean": None,
    "mild": Damage(0.4, 1.0, 20),
    "medium": Damage(1.2, 3.0, 25),
    "heavy": Damage(2.5, 5.0, 33),
    "noise 12": Damage(0.6, 12.0, 12),
    "noise 24": Damage(0.6, 24.0, 18),
}
"""None: bicubic downsampling with anti-aliasing, nothing else."""
UNDEGRADED = "undegraded"
DRIFT_CASE = "medium"
SKIPPED = 5
"""Frames at the start that are not judged: the recurrence warms up."""
PEERS = ("realesr-animevideov3", "realesrgan-x4plus")
SCORES = ("PSNR-Y", "PSNR", "SSIM-Y", "ERQA", "JOD", "flicker", "NIQE", "CPU ms")
Motion = Literal["own", "slow", "still"]


@dataclass(frozen=True)
class Method:
    """A way to enlarge.

    Attributes:
        enlarge: a small RGBS clip to its large frames ``(3, h, w)`` in [0, 1], from the given one on.
        parameters: of the network.
        recurrent: frames before the first one that is asked for are run too.
    """

    enlarge: Callable[[vs.VideoNode, int], Iterator[Tensor]]
    parameters: int = 0
    recurrent: bool = False


def pictures(clip: vs.VideoNode) -> Iterator[np.ndarray]:
    """Frames ``(h, w, 3)`` uint8 of an RGB clip."""
    for frame in clip.resize.Point(format=vs.RGB24).frames(close=True):
        yield np.stack([np.asarray(frame[plane]) for plane in range(3)], axis=-1)


def open_truth(path: Path) -> vs.VideoNode:
    """The video as RGB24, sides multiples of 8."""
    clip = harness.open_clip(path)
    width, height = (side // 8 * 8 for side in (clip.width, clip.height))
    return clip.resize.Bicubic(width=width, height=height, format=vs.RGB24)


def with_motion(film: vs.VideoNode, motion: Motion, frames: int) -> vs.VideoNode:
    """The film's first frames, its middle frame standing still, or a pan over that: one pixel a frame to the right."""
    if motion == "own":
        return film[:frames]
    middle = film[len(film) // 2]
    if motion == "still":
        return middle * frames
    width = (film.width - frames) // 8 * 8
    return vs.core.std.Splice([middle.std.CropAbs(width, film.height, left=left) for left in range(frames)])


def degrade(truth: vs.VideoNode, damage: Damage | None, resize: Resize, path: Path, *, scale: int) -> vs.VideoNode:
    """Smaller by ``scale``, blurred, noisy and compressed to ``path``; returned as RGBS."""
    width, height = truth.width // scale, truth.height // scale
    if damage is None:
        return truth.resize.Bicubic(width=width, height=height, format=vs.RGBS, filter_param_a=0, filter_param_b=0.5)
    rng = np.random.default_rng(1)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", "25", "-i", "-"]
    command += ["-vf", "scale=out_color_matrix=bt709", "-colorspace", "bt709"]
    command += ["-c:v", "libx264", "-crf", str(damage.crf), "-pix_fmt", "yuv420p", str(path)]
    encoder = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert encoder.stdin is not None
    for frame in pictures(truth):
        sigma, noise = damage.sigma * scale / 4, damage.noise * scale / 4
        colours = [gaussian_filter(frame[..., i].astype(np.float32), sigma, truncate=4) for i in range(3)]
        noisy = torch.from_numpy(np.stack(colours) + rng.normal(0, noise, frame.shape).transpose(2, 0, 1))
        small = downsample(noisy[None], scale, resize)[0].round().clamp(0, 255).byte()
        encoder.stdin.write(small.permute(1, 2, 0).contiguous().numpy().tobytes())
    encoder.stdin.close()
    if encoder.wait():
        raise SystemExit("ffmpeg failed, see above")
    return harness.open_clip(path)


def by_filter(call: Callable[[vs.VideoNode], vs.VideoNode], *, weights_file: Path | None = None) -> Method:
    """A VapourSynth filter; FastReal if it has a file of weights."""

    def enlarge(small: vs.VideoNode, first: int) -> Iterator[Tensor]:
        for picture in pictures(call(small)[first:]):
            yield to_tensor(picture[None])[0]

    parameters = 0 if weights_file is None else count_parameters(load(weights_file).network)
    return Method(enlarge, parameters, recurrent=weights_file is not None)


def by_network(name: str, scale: int) -> Method:
    """A published per-frame network in fp32, without VapourSynth around it; for x2 its pictures are averaged."""
    network = load_ncnn(name, weights.install(name)).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def enlarge(small: vs.VideoNode, first: int) -> Iterator[Tensor]:
        for frame in harness.tensors(small[first:]):
            picture = network(frame[None].contiguous(memory_format=torch.channels_last))[0].clamp(0, 1)
            yield picture if scale == 4 else F.avg_pool2d(picture, 2)

    return Method(enlarge, count_parameters(network))


def count_parameters(network: torch.nn.Module) -> int:
    """Of all layers."""
    return sum(parameter.numel() for parameter in network.parameters())


def methods(scale: int, files: Mapping[str, Path], twin: Path | None) -> dict[str, Method]:
    """All that are compared, by name."""

    def size(clip: vs.VideoNode) -> dict[str, int]:
        return {"width": scale * clip.width, "height": scale * clip.height}

    def fastreal(path: Path, **restarts: int) -> Method:
        return by_filter(lambda clip: clip.vsvsr.FastReal(model_path=str(path), **restarts), weights_file=path)

    found = {
        "bicubic": by_filter(lambda clip: clip.resize.Bicubic(**size(clip), filter_param_a=0, filter_param_b=0.5)),
        "Lanczos": by_filter(lambda clip: clip.resize.Lanczos(**size(clip))),
    }
    found |= {name: by_network(name, scale) for name in PEERS}
    for row in weights.MANIFEST:
        if row.name.startswith("fastreal-") and row.name.endswith(f"-x{scale}"):
            found[row.name] = fastreal(weights.verify(row.name))
    found |= {name: fastreal(path) for name, path in files.items()}
    if twin is not None:
        # A restart at every frame: the state is always zero.
        found["twin"] = fastreal(twin, segment=1, warmup=0)
    return found


def compare(arguments: argparse.Namespace, chosen: Mapping[str, Method], results: harness.Results) -> None:
    """Scores of every method on every clip in every case, then their means over all of these."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    flow = LightFlow().requires_grad_(False)
    for path in arguments.clips:
        film = with_motion(open_truth(path)[arguments.first :], arguments.motion, arguments.frames)
        for case in arguments.cases:
            outputs: dict[str, Tensor] = {}
            truth = torch.empty(0)
            with tempfile.TemporaryDirectory() as folder:
                if case == UNDEGRADED:
                    small = film.resize.Point(format=vs.RGBS)
                else:
                    target = Path(folder) / "small.mkv"
                    small = degrade(film, CASES[case], arguments.downsampling, target, scale=arguments.scale)
                    truth = to_tensor(np.stack(list(pictures(film[SKIPPED:]))))
                for name, method in chosen.items():
                    frames, time = harness.timed(partial(list[Tensor], method.enlarge(small, SKIPPED)))
                    result = torch.stack(frames)
                    milliseconds = 1e3 * time.cpu / (len(small) if method.recurrent else len(frames))
                    outputs[f"{name}, {milliseconds:.0f} ms"] = result
                    if case == UNDEGRADED:
                        continue
                    rows[name].append({**figures(result, truth, flow), "CPU ms": milliseconds})
                    results.add(f"{path.stem}, {case}, {name}", rows[name][-1])
            if arguments.sheet is not None:
                shown = outputs if case == UNDEGRADED else {**outputs, "truth": truth}
                write_sheet(arguments.sheet / f"{path.stem}-{case.replace(' ', '-')}.png", shown, arguments.crop)
    for name, found in rows.items():
        if found:
            means = {score: statistics.mean(row[score] for row in found) for score in SCORES}
            results.add(f"mean, {name}", {**means, "parameters": chosen[name].parameters})


def figures(result: Tensor, truth: Tensor, flow: LightFlow) -> dict[str, float]:
    """Every score but the time; both clips are ``(t, 3, h, w)``."""
    scores = score(result, truth, flow)
    return {
        "PSNR-Y": scores.psnr_y,
        "PSNR": scores.psnr_rgb,
        "SSIM-Y": scores.ssim_y,
        "ERQA": erqa(result, truth),
        "JOD": jod(result, truth),
        "flicker": scores.flicker,
        "NIQE": mean_niqe(result) if min(result.shape[-2:]) >= 192 else float("nan"),
    }


def write_sheet(path: Path, clips: Mapping[str, Tensor], crop: tuple[int, int, int, int] | None) -> None:
    """A crop (left, top, width, height) of the last frames, by default of their middle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, _, height, width = next(iter(clips.values())).shape
    middle = (max(width - 360, 0) // 2, max(height - 270, 0) // 2, min(width, 360), min(height, 270))
    sheet(clips, frames=[count - 1], crop=crop or middle).save(path)


def write_drift(arguments: argparse.Namespace, chosen: Mapping[str, Method], results: harness.Results) -> None:
    """Scores of every frame as CSV, and a row for each clip and method: the first and the last twenty judged frames."""
    arguments.drift.mkdir(parents=True, exist_ok=True)
    for path in arguments.clips:
        for motion in get_args(Motion):
            film = with_motion(open_truth(path), motion, arguments.frames)
            lines = ["clip,frame,psnr_y,niqe"]
            with tempfile.TemporaryDirectory() as folder:
                target = Path(folder) / "small.mkv"
                small = degrade(film, CASES[DRIFT_CASE], arguments.downsampling, target, scale=arguments.scale)
                for name, method in chosen.items():
                    truth = (to_tensor(frame[None])[0] for frame in pictures(film))
                    rows = list(frame_scores(method.enlarge(small, 0), truth))
                    for frame, row in enumerate(rows):
                        lines.append(f"{name},{frame}," + ",".join("" if v is None else f"{v:.4f}" for v in row))
                    ends: dict[str, float] = {}
                    for label, part in (("first", rows[SKIPPED : SKIPPED + 20]), ("last", rows[-20:])):
                        for quantity, column in zip(("PSNR-Y", "NIQE"), zip(*part, strict=True), strict=True):
                            known = [value for value in column if value is not None]
                            ends[f"{quantity}, {label}"] = statistics.mean(known) if known else float("nan")
                    results.add(f"{path.stem}, {motion}, {len(rows)} frames, {name}", ends)
            (arguments.drift / f"{path.stem}-{motion}.csv").write_text("\n".join(lines) + "\n")


def main() -> None:
    """The command line."""
    parser = harness.arguments(__doc__)
    parser.add_argument("clips", type=Path, nargs="+", help="videos of good quality")
    parser.add_argument("--scale", type=int, choices=(2, 4), default=4)
    parser.add_argument("--weights", type=Path, nargs="*", default=[], help="more FastReal files to compare")
    parser.add_argument("--twin", type=Path, help="weights that were trained with --stateless")
    parser.add_argument("--cases", nargs="*", choices=[*CASES, UNDEGRADED], default=list(CASES))
    parser.add_argument("--methods", nargs="*", help="only these")
    parser.add_argument("--motion", choices=get_args(Motion), default="own", help="of the clips")
    parser.add_argument("--downsampling", choices=get_args(Resize), default="area")
    parser.add_argument("--first", type=int, default=40, help="first frame; with --drift it is 0")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--sheet", type=Path, help="folder for crops side by side, CPU time a frame above each")
    crop = "of the large frames, for the sheets; default: the middle"
    parser.add_argument("--crop", type=int, nargs=4, metavar=("LEFT", "TOP", "WIDTH", "HEIGHT"), help=crop)
    parser.add_argument("--drift", type=Path, metavar="FOLDER", help="write scores of every frame there instead")
    arguments = parser.parse_args()
    # A run folder gives its file its name.
    files = {path.stem if path.stem not in ("last", "best") else path.parent.name: path for path in arguments.weights}
    found = methods(arguments.scale, files, arguments.twin)
    chosen = {name: method for name, method in found.items() if not arguments.methods or name in arguments.methods}
    with torch.no_grad():
        if arguments.drift is not None:
            write_drift(arguments, chosen, harness.Results("peers, drift", arguments.csv))
        else:
            compare(arguments, chosen, harness.Results("peers", arguments.csv))


if __name__ == "__main__":
    main()
