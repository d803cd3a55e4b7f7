"""UltraVSR in numbers: time and memory of the tiny configuration measured here, those of the full one counted.

    python -m scripts.bench.ultra [--frames 36] [--size 48x64] [--weights compact.safetensors]

Everything is measured in one run, one after the other; what counts are the ratios.
"""

import argparse
import resource
import time
from collections.abc import Callable, Iterator

import psutil
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vsvsr.engine.continued import ContinuedNetwork
from vsvsr.models.ultra import FULL, REACH, TINY, Restored, RTSModule, UltraVSR, Upscaler, build
from vsvsr.models.ultra.files import load_compact
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
    width = network.unet.config.cross_attention_dim
    return Upscaler(network, degradation=0.5, prompt=torch.zeros(1, 77, width))


def stream_of(model: Upscaler) -> ContinuedNetwork[Restored]:
    network = ContinuedNetwork[Restored](torch.device("cpu"), torch.float32)
    network.model = model
    return network


def consume(pictures: Iterator[object]) -> int:
    """Run through, keeping nothing."""
    return sum(1 for _ in pictures)


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def timing(network: UltraVSR, frames: list[Tensor]) -> None:
    count, length = len(frames), 12
    one_by_one = seconds(lambda: consume(stream_of(upscaler(network)).run(frames, range(count), 0))) / count

    def chunks(keep: bool) -> None:
        stream = stream_of(upscaler(network))
        for start in range(0, count, length):
            stop = min(start + length, count)
            first, last = max(start - REACH, 0), min(stop + REACH, count)
            emit = range(start - first, stop - first)
            if not keep:
                stream = stream_of(upscaler(network))
            consume(stream.run(frames[first:last], emit, first))

    continued, separate = (seconds(lambda keep=keep: chunks(keep)) / count for keep in (True, False))
    whole = seconds(lambda: whole_clip(network, frames)) / count
    print(f"time per frame, {tuple(frames[0].shape[-2:])} to x4, {torch.get_num_threads()} threads")
    print(f"  stream                              {one_by_one * 1e3:8.1f} ms  x1.00")
    for name, value in (
        (f"chunks of {length}, continued", continued),
        (f"chunks of {length}, each on its own", separate),
        ("whole clip at once, batched", whole),
    ):
        print(f"  {name:<34}  {value * 1e3:8.1f} ms  x{value / one_by_one:.2f}")


@torch.inference_mode()
def whole_clip(network: UltraVSR, frames: list[Tensor]) -> None:
    """Layer after layer over all frames, as without a stream."""
    settings = upscaler(network)
    latents = torch.cat([settings.encode(frame[None]) for frame in frames])
    prompt = torch.zeros(1, 77, network.unet.config.cross_attention_dim)
    run_whole(network.decoder_steps(), run_whole(network.unet_steps(520, prompt), latents))


def memory(network: UltraVSR, frames: list[Tensor]) -> None:
    """Must come first: memory that was used once stays with the process."""
    print("memory against the number of frames")
    process = psutil.Process()
    before = process.memory_info().rss
    for repeat in (1, 2, 4):
        settings, most = upscaler(network), 0
        for _ in stream_of(settings).run(frames * repeat, range(len(frames) * repeat), 0):
            most = max(most, process.memory_info().rss - before)
        waited = settings.buffer.peak / 1e6
        print(
            f"  {len(frames) * repeat:5} frames in a stream: process grew by {most / 1e6:.0f} MB, {waited:.1f} MB wait"
        )
    for repeat in (1, 2):
        whole_clip(network, frames * repeat)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        print(f"  {len(frames) * repeat:5} frames at once: process grew by {peak / 1e6:.0f} MB")


def halo(network: UltraVSR, frames: list[Tensor]) -> None:
    print("largest difference of a chunk of 4 frames with less context (0 for the full 24), pictures in [0, 1]")
    middle = len(frames) // 2
    exact: Tensor | None = None
    for context in (REACH, 16, 8, 4, 2, 0):
        first = max(middle - context, 0)
        stretch = frames[first : middle + 4 + context]
        pictures = stream_of(upscaler(network)).run(stretch, range(middle - first, middle - first + 4), 0)
        result = torch.cat([restored.picture for restored in pictures])
        exact = result if exact is None else exact
        print(f"  {context:3} frames: {(result - exact).abs().max():.1e}")


def full_size() -> None:
    print("the full configuration, counted (fp16, per frame)", flush=True)
    with torch.device("meta"), torch.inference_mode():
        network = build(FULL).half()
        prompt = torch.zeros(1, 77, 1024, dtype=torch.half)
        for height, width in ((90, 160), (180, 320), (96, 96), (64, 64)):
            latents = torch.zeros(1, 4, height, width, dtype=torch.half)
            frame = torch.zeros(1, 3, 8 * height, 8 * width, dtype=torch.half)
            unet, decoder = network.unet_steps(520, prompt), network.decoder_steps()
            tera = []
            for work in (
                lambda frame=frame: network.encode(frame),
                lambda steps=unet, latents=latents: run_whole(steps, latents),
                lambda steps=decoder, latents=latents: run_whole(steps, latents),
            ):
                with FlopCounterMode(display=False) as counter:
                    work()
                tera.append(counter.get_total_flops() / 1e12)
            enter = unet[0]
            assert callable(enter)
            first = enter(latents, Skips()).nbytes
            parts = waiting(unet, latents), waiting(decoder, latents)
            print(f"  latents {height}x{width}, pictures {8 * height}x{8 * width}")
            print(f"    encoder {tera[0]:.2f}, UNet {tera[1]:.2f}, decoder {tera[2]:.2f}: {sum(tera):.2f} TFLOP")
            if (height, width) in PAPER_SECONDS:
                known = PAPER_SECONDS[height, width]
                print(f"    the paper's {known} s on an RTX 8000 is {sum(tera) / known:.1f} TFLOP/s")
            inputs = " / ".join(f"{count / 1e6:.1f}" for count in parts[1].inputs)
            print(f"    UNet skips {parts[0].skips / 1e6:.1f} MB, first features {first / 1e6:.1f} MB")
            print(f"    decoder inputs of temporal shift {inputs} MB")
            streams = " and ".join(f"{part.stream / 1e9:.2f}" for part in parts)
            print(f"    a stream keeps {streams} GB (UNet, decoder), for clips of any length")
            if (height, width) in PAPER_SECONDS:
                tiled("UNet", unet, height, width, overlap=32)
                tiled("decoder", decoder, height, width, overlap=16)


def tiled(name: str, steps: list[Step], height: int, width: int, *, overlap: int) -> None:
    """The same in tiles of 96."""
    tiles = Tiles(height, width, tile=(96, 96), overlap=overlap)
    latents = torch.zeros(1, 4, *tiles.size, dtype=torch.half)
    kept = len(tiles) * waiting(steps, latents).stream / 1e9
    with FlopCounterMode(display=False) as counter:
        run_whole(steps, latents)
    work = len(tiles) * counter.get_total_flops() / 1e12
    print(f"    {name} in {len(tiles)} tiles of {tiles.size}: {work:.2f} TFLOP, a stream keeps {kept:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=36)
    parser.add_argument("--size", default="48x64", help="height x width of the input frames")
    parser.add_argument("--weights", help="a compact network; random weights without it")
    arguments = parser.parse_args()
    height, width = map(int, arguments.size.split("x"))
    network = load_compact(arguments.weights) if arguments.weights else tiny_network()
    generator = torch.Generator().manual_seed(0)
    frames = list(torch.rand(arguments.frames, 3, height, width, generator=generator))
    memory(network, frames)
    timing(network, frames)
    halo(network, frames)
    full_size()


if __name__ == "__main__":
    main()
