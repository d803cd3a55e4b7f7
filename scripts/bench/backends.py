"""Times FastReal's networks in PyTorch and in ONNX Runtime on the CPU, 320x180."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from scripts.bench import harness
from vsvsr import weights
from vsvsr.engine.onnx import OnnxNetwork, choose_provider
from vsvsr.models.fastreal import load
from vsvsr.models.fastreal.step import Picture, Propagate, write_onnx

SIZE = (180, 320)
NAMES = ("fastreal-x4", "fastreal-compact-x4", "fastreal-compact-x2")


def cpu(work: Callable[[], object]) -> harness.Measure:
    """Measure ``work`` by the CPU time of all threads: on a machine with other work, the one that says something."""
    return lambda: harness.timed(work)[1].cpu


@torch.inference_mode()
def compare(results: harness.Results, name: str, folder: Path, rounds: int) -> None:
    """CPU milliseconds of a step and a picture, and ratios to PyTorch.

    Args:
        results: where the rows go.
        name: of the weights.
        folder: for files.
        rounds: timed runs of each form.
    """
    loaded = load(weights.find(name))
    network, channels = loaded.network, loaded.network.config.channels
    files = [folder / f"{name}-{part}.onnx" for part in ("propagate", "picture")]
    write_onnx(Propagate(network), files[0])
    write_onnx(Picture(network), files[1])
    provider = choose_provider(-1)
    onnx = OnnxNetwork(files[0], files[1], provider, torch.float32, scale=loaded.scale, channels=channels)
    torch.manual_seed(0)
    frame, previous = (torch.rand(1, 3, *SIZE).to(memory_format=torch.channels_last) for _ in range(2))
    planes = [torch.empty(loaded.scale * SIZE[0], loaded.scale * SIZE[1]) for _ in range(3)]
    states = network.propagate(previous, None, None), onnx.propagate(previous, None, None)
    works: dict[str, Callable[[], object]] = {
        "step, torch": lambda: network.propagate(frame, previous, states[0]),
        "step, onnx": lambda: onnx.propagate(frame, previous, states[1]),
        "picture, torch": lambda: network.render(states[0], frame, planes),
        "picture, onnx": lambda: onnx.render(states[1], frame, planes),
    }
    times = harness.in_turn({work: cpu(function) for work, function in works.items()}, rounds)
    for work in works:
        peer = f"{work.partition(',')[0]}, torch"
        results.add(f"{name}, {work}", {"CPU ms": times.median(work) * 1e3, "to torch": times.ratio(work, peer)})


def main() -> None:
    """The command line."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("names", nargs="*", default=NAMES, help="weights")
    arguments = parser.parse_args()
    results = harness.Results("backends", arguments.csv)
    print(choose_provider(-1).described)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.names:
            compare(results, name, Path(folder), arguments.rounds)


if __name__ == "__main__":
    main()
