"""UltraVSR in numbers: time and memory of the tiny configuration measured here, operations of the full one counted."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scripts.bench import harness
from vsvsr.engine.continued import ContinuedNetwork
from vsvsr.engine.planes import Frame
from vsvsr.models.ultra import FULL, REACH, TINY, Restored, RTSModule, UltraVSR, Upscaler, build
from vsvsr.models.ultra.checkpoints import load_compact
from vsvsr.models.ultra.memory import waiting
from vsvsr.models.ultra.network import Step, run_whole
from vsvsr.models.ultra.skips import Skips
from vsvsr.models.ultra.tiles import Tiles

PAPER_SECONDS = {(90, 160): 0.89, (180, 320): 2.67}


def tiny_network() -> UltraVSR:
    """Random weights with all temporal shift modules at work."""
    torch.manual_seed(0)
    network = build(TINY).requires_grad_(False)
    for module in network.modules():
        if isinstance(module, RTSModule):
            torch.nn.init.normal_(module.RTSConv.conv3.weight, std=0.1)
            torch.nn.init.normal_(module.RTSAtten.project_out.weight, std=0.1)
    return network


def upscaler(network: UltraVSR) -> Upscaler:
    """With the default degradation and an empty prompt."""
    width = network.unet.config.cross_attention_dim
    return Upscaler(network, degradation=0.5, prompt=torch.zeros(1, 77, width))


def stream_of(model: Upscaler) -> ContinuedNetwork[Restored]:
    """What takes frames in order and continues where it stopped."""
    network = ContinuedNetwork[Restored](torch.device("cpu"), torch.float32)
    network.model = model
    return network


def load_network(path: Path | None) -> UltraVSR:
    """The compact network in ``path``; random weights without one."""
    return tiny_network() if path is None else load_compact(path).network


def noise(count: int, height: int, width: int) -> list[Tensor]:
    """Frames ``(3, h, w)`` in [0, 1]."""
    return list(torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)))


def as_read(frames: list[Tensor]) -> list[Frame]:
    return [Frame(frame[None], torch.zeros(1, dtype=torch.bool)) for frame in frames]


def consume(pictures: Iterator[object]) -> None:
    """Run to the end, keeping nothing."""
    for _ in pictures:
        pass


def in_chunks(network: UltraVSR, frames: list[Tensor], length: int, *, continued: bool) -> None:
    """Chunks of ``length`` frames, continued from one another or each with its own context."""
    stream, count = stream_of(upscaler(network)), len(frames)
    for start in range(0, count, length):
        stop = min(start + length, count)
        first, last = max(start - REACH, 0), min(stop + REACH, count)
        emit = range(start - first, stop - first)
        if not continued:
            stream = stream_of(upscaler(network))
        consume(stream.run(as_read(frames[first:last]), emit, first))


def timing(results: harness.Results, network: UltraVSR, frames: list[Tensor], rounds: int) -> None:
    """Milliseconds a frame, and ratios to a stream."""
    count, length = len(frames), 12
    works: dict[str, Callable[[], None]] = {
        "stream": lambda: consume(stream_of(upscaler(network)).run(as_read(frames), range(count), 0)),
        f"chunks of {length}, continued": partial(in_chunks, network, frames, length, continued=True),
        f"chunks of {length}, each on its own": partial(in_chunks, network, frames, length, continued=False),
        "whole clip at once, batched": partial(whole_clip, network, frames),
    }
    times = harness.in_turn({name: harness.wall(work) for name, work in works.items()}, rounds)
    for name in works:
        results.add(name, {"ms a frame": times.median(name) * 1e3 / count, "to stream": times.ratio(name, "stream")})


@torch.inference_mode()
def whole_clip(network: UltraVSR, frames: list[Tensor]) -> None:
    """Layer after layer over all frames, as without a stream."""
    settings = upscaler(network)
    latents = torch.cat([settings.encode(frame[None]) for frame in frames])
    prompt = torch.zeros(1, 77, network.unet.config.cross_attention_dim)
    run_whole(network.decoder_steps(), run_whole(network.unet_steps(520, prompt), latents))


def memory(results: harness.Results, path: Path | None, count: int, height: int, width: int) -> None:
    """Peaks above the loaded network, each in a process of its own."""
    for repeat in (1, 2, 4):
        peak, shelf = harness.in_fresh_process(peak_of_stream, path, repeat * count, height, width)
        results.add(f"{repeat * count} frames in a stream", {"peak MB": peak, "offload buffer MB": shelf})
    for repeat in (1, 2):
        peak = harness.in_fresh_process(peak_at_once, path, repeat * count, height, width)
        results.add(f"{repeat * count} frames at once", {"peak MB": peak})


def peak_of_stream(path: Path | None, count: int, height: int, width: int) -> tuple[float, float]:
    """Growth of the process and peak of the offload buffer, in MB."""
    settings, frames = upscaler(load_network(path)), noise(count, height, width)
    before = harness.peak_megabytes()
    consume(stream_of(settings).run(as_read(frames), range(count), 0))
    return harness.peak_megabytes() - before, settings.buffer.peak / 1e6


def peak_at_once(path: Path | None, count: int, height: int, width: int) -> float:
    """Growth of the process in MB."""
    network, frames = load_network(path), noise(count, height, width)
    before = harness.peak_megabytes()
    whole_clip(network, frames)
    return harness.peak_megabytes() - before


def context(results: harness.Results, network: UltraVSR, frames: list[Tensor]) -> None:
    """Largest difference of a chunk of 4 frames with less than full context, pictures in [0, 1]."""
    middle = len(frames) // 2
    exact: Tensor | None = None
    for count in (REACH, 16, 8, 4, 2, 0):
        first = max(middle - count, 0)
        emit = range(middle - first, middle - first + 4)
        pictures = stream_of(upscaler(network)).run(as_read(frames[first : middle + 4 + count]), emit, 0)
        result = torch.cat([restored.result.picture for restored in pictures])
        exact = result if exact is None else exact
        results.add(f"{count} frames of context", {"difference": float((result - exact).abs().max())})


@torch.inference_mode()
def full_size(results: harness.Results) -> None:
    """The full configuration in fp16, a frame, by size of the latents: operations, and memory of a stream."""
    with torch.device("meta"):
        network = build(FULL).half()
        prompt = torch.zeros(1, 77, 1024, dtype=torch.half)
        unet, decoder = network.unet_steps(520, prompt), network.decoder_steps()
        for height, width in ((90, 160), (180, 320), (96, 96), (64, 64)):
            latents = torch.zeros(1, 4, height, width, dtype=torch.half)
            frame = torch.zeros(1, 3, 8 * height, 8 * width, dtype=torch.half)
            works = {
                "encoder": partial(network.encode, frame),
                "UNet": partial(run_whole, unet, latents),
                "decoder": partial(run_whole, decoder, latents),
            }
            case = f"{8 * width}x{8 * height}"
            tera = {f"{name} TFLOP": teraflop(work) for name, work in works.items()}
            results.add(case, {**tera, "sum TFLOP": sum(tera.values())})
            if (height, width) in PAPER_SECONDS:
                speed = sum(tera.values()) / PAPER_SECONDS[height, width]
                results.add(f"{case}, in the paper on an RTX 8000", {"TFLOP/s": speed})
            enter = unet[0]
            assert callable(enter)
            waits = {"UNet": waiting(unet, latents), "decoder": waiting(decoder, latents)}
            figures = {
                "UNet skips MB": waits["UNet"].skips / 1e6,
                "first features MB": enter(latents, Skips()).nbytes / 1e6,
            }
            inputs = {f"shift {n} MB": count / 1e6 for n, count in enumerate(waits["decoder"].inputs)}
            results.add(f"{case}, buffers", {**figures, **inputs})
            results.add(f"{case}, a stream", {f"{name} GB": wait.stream / 1e9 for name, wait in waits.items()})
            if (height, width) in PAPER_SECONDS:
                tiled(results, f"{case}, UNet", unet, height, width, overlap=32)
                tiled(results, f"{case}, decoder", decoder, height, width, overlap=16)


def teraflop(work: Callable[[], object]) -> float:
    """Operations of one call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()) / 1e12


def tiled(results: harness.Results, case: str, steps: list[Step], height: int, width: int, *, overlap: int) -> None:
    """The same in tiles of 96."""
    tiles = Tiles(height, width, tile=(96, 96), overlap=overlap)
    latents = torch.zeros(1, 4, *tiles.size, dtype=torch.half)
    figures = {
        "TFLOP": len(tiles) * teraflop(lambda: run_whole(steps, latents)),
        "stream GB": len(tiles) * waiting(steps, latents).stream / 1e9,
    }
    results.add(f"{case}, {len(tiles)} tiles of {tiles.size}", figures)


def main() -> None:
    """The command line."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--frames", type=int, default=36)
    parser.add_argument("--size", default="48x64", help="height x width of the input frames")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--weights", type=Path, help="a compact network; random weights without it")
    arguments = parser.parse_args()
    height, width = map(int, arguments.size.split("x"))
    results = harness.Results("ultra", arguments.csv)
    memory(results, arguments.weights, arguments.frames, height, width)
    network, frames = load_network(arguments.weights), noise(arguments.frames, height, width)
    timing(results, network, frames, arguments.rounds)
    context(results, network, frames)
    full_size(results)


if __name__ == "__main__":
    main()
