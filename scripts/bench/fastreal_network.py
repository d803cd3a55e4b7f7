"""Times the compact FastRealVSR against a per-frame network of the SRVGG shape, in one run on this CPU.

320x180 to 1280x720. Rounds alternate and medians are compared, so that a machine that slows down slows all alike.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vsvsr.models.fastreal import COMPACT, FastRealVSR

SIZE = (180, 320)


def srvgg() -> nn.Module:
    """3x3 convolutions, 64 channels, 16 layers between the first and the last, PReLU, pixel shuffle x4."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), nn.PReLU(64)]
    for _ in range(16):
        layers += [nn.Conv2d(64, 64, 3, padding=1), nn.PReLU(64)]
    layers += [nn.Conv2d(64, 48, 3, padding=1), nn.PixelShuffle(4)]
    return nn.Sequential(*layers).eval().to(memory_format=torch.channels_last)


def milliseconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def convolution_operations(network: nn.Module, work: Callable[[], object]) -> float:
    """Floating-point operations of the convolutions that ``work`` runs in ``network``."""
    total = 0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        total += 2 * output.numel() * weight[0].numel()

    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_hook(count) for module in convolutions]
    work()
    for hook in hooks:
        hook.remove()
    return float(total)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    frame, previous = (torch.rand(1, 3, *SIZE).to(memory_format=torch.channels_last) for _ in range(2))
    peer, network = srvgg(), FastRealVSR(COMPACT).eval().to(memory_format=torch.channels_last)
    plain = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
    wide = torch.rand(1, 64, *SIZE).to(memory_format=torch.channels_last)
    planes = [torch.empty(4 * SIZE[0], 4 * SIZE[1]) for _ in range(3)]
    with torch.inference_mode():
        hidden = network.propagate(frame, None, None)

        def step() -> None:
            network.render(network.propagate(frame, previous, hidden), frame, planes)

        works: dict[str, Callable[[], object]] = {
            "SRVGG shape, 16 x 64": lambda: peer(frame),
            "compact, whole step": step,
            "  flow": lambda: network.flow(frame, previous),
            "  render": lambda: network.render(hidden, frame, planes),
            "plain 64-channel convolution": lambda: plain(wide),
        }
        operations = {
            "SRVGG shape, 16 x 64": convolution_operations(peer, works["SRVGG shape, 16 x 64"]),
            "compact, whole step": convolution_operations(network, step),
            "plain 64-channel convolution": convolution_operations(plain, works["plain 64-channel convolution"]),
        }
        for work in works.values():
            work()
        times: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(arguments.rounds):
            for name, work in works.items():
                times[name].append(milliseconds(work))
    medians = {name: statistics.median(values) for name, values in times.items()}
    reference = medians["SRVGG shape, 16 x 64"]
    print(f"{arguments.threads} threads, median of {arguments.rounds}")
    for name, value in medians.items():
        speed = f"{operations[name] / value / 1e6:6.0f} GFLOP/s in convolutions" if name in operations else ""
        print(f"{name:30s} {value:8.2f} ms   ratio {value / reference:6.3f}   {speed}")


if __name__ == "__main__":
    main()
