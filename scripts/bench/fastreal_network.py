"""Times the compact FastRealVSR against a per-frame network of the SRVGG shape, 320x180 to 1280x720 on the CPU."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scripts.bench import harness
from vsvsr.models.fastreal import COMPACT, FastRealVSR

SIZE = (180, 320)
PEER = "SRVGG shape, 16 x 64"


def srvgg() -> nn.Module:
    """3x3 convolutions, 64 channels, 16 layers between the first and the last, PReLU, pixel shuffle x4."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), nn.PReLU(64)]
    for _ in range(16):
        layers += [nn.Conv2d(64, 64, 3, padding=1), nn.PReLU(64)]
    layers += [nn.Conv2d(64, 48, 3, padding=1), nn.PixelShuffle(4)]
    return nn.Sequential(*layers).eval().to(memory_format=torch.channels_last)


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


@torch.inference_mode()
def compare(results: harness.Results, rounds: int, size: tuple[int, int] = SIZE) -> None:
    """Milliseconds, ratios to the SRVGG shape, and GFLOP/s in convolutions.

    Args:
        results: where the rows go.
        rounds: timed runs of each form.
        size: height and width of the input.
    """
    torch.manual_seed(0)
    frame, previous = (torch.rand(1, 3, *size).to(memory_format=torch.channels_last) for _ in range(2))
    peer, network = srvgg(), FastRealVSR(COMPACT).eval().to(memory_format=torch.channels_last)
    plain = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
    wide = torch.rand(1, 64, *size).to(memory_format=torch.channels_last)
    planes = [torch.empty(4 * size[0], 4 * size[1]) for _ in range(3)]
    hidden = network.propagate(frame, None, None)

    def step() -> None:
        network.render(network.propagate(frame, previous, hidden), frame, planes)

    works: dict[str, Callable[[], object]] = {
        PEER: lambda: peer(frame),
        "compact, whole step": step,
        "  flow": lambda: network.flow(frame, previous),
        "  render": lambda: network.render(hidden, frame, planes),
        "plain 64-channel convolution": lambda: plain(wide),
    }
    convolutions: dict[str, nn.Module] = {
        PEER: peer,
        "compact, whole step": network,
        "plain 64-channel convolution": plain,
    }
    operations = {name: convolution_operations(module, works[name]) for name, module in convolutions.items()}
    times = harness.in_turn({name: harness.wall(work) for name, work in works.items()}, rounds)
    for name in works:
        speed = {"GFLOP/s": operations[name] / times.median(name) / 1e9} if name in operations else {}
        results.add(name, {"ms": times.median(name) * 1e3, "to SRVGG": times.ratio(name, PEER), **speed})


def main() -> None:
    """The command line."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    compare(harness.Results("fastreal_network", arguments.csv), arguments.rounds)


if __name__ == "__main__":
    main()
