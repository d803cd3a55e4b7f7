"""On a machine with an NVIDIA GPU: run every test that needs one, then time kernels against PyTorch. About a minute.

Run with the Python of the environment in which vsvsr[cuda,dev] is installed.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr.engine.graph import StepGraph
from vsvsr.models.fastreal import COMPACT, FastRealConfig, FastRealVSR
from vsvsr.ops.block_skip import BlockWeights, fused_block_residual
from vsvsr.ops.flow_warp import flow_warp_reference, fused_flow_warp
from vsvsr.ops.hidden_state_attention import (
    fused_hidden_state_attention,
    hidden_state_attention_reference,
    member_filters,
)
from vsvsr.ops.masked_window_attention import fused_masked_window_attention, masked_window_attention_reference

ROOT = Path(__file__).parents[1]
HEIGHT, WIDTH, CHANNELS, TILE = 270, 480, 64, 16
ATTENTION_CHANNELS, HEADS, WINDOW = 120, 6, 8
ROUNDS = 15

type Run = Callable[[], object]


def milliseconds(run: Run) -> float:
    """The median time on the GPU, after a few runs for warming up."""
    for _ in range(3):
        run()
    times = []
    for _ in range(ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def maps(dtype: torch.dtype, device: str, count: int = 1) -> Tensor:
    """Random feature maps, channels last: ``(count, 1, c, h, w)``."""
    x = torch.randn(count, HEIGHT, WIDTH, CHANNELS, device=device).to(dtype)
    return x.permute(0, 3, 1, 2)[:, None]


def hidden_state_attention(dtype: torch.dtype, device: str) -> tuple[str, Run, Run]:
    """Five members of three filters."""
    query, key, value = maps(dtype, device, 3)
    kernels = torch.rand(3, 5, 5, device=device)
    kernels /= kernels.sum((1, 2), keepdim=True)
    rows = [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [2, -1, 0, 0], [2, 0, 0, -1]]
    mix = torch.tensor(rows, device=device, dtype=torch.float32)
    filters = member_filters(kernels, mix)
    return (
        "hidden_state_attention",
        lambda: hidden_state_attention_reference(query, key, value, kernels, mix),
        lambda: fused_hidden_state_attention(query, key, value, filters),
    )


def masked_window_attention(share: float, dtype: torch.dtype, device: str) -> tuple[str, Run, Run]:
    """A share of the pixels kept, in patches."""
    c = ATTENTION_CHANNELS
    tokens = torch.randn(1, 3, HEIGHT, WIDTH, c, device=device).to(dtype)
    weight, bias = (
        (torch.randn(3 * c, c, device=device) / c**0.5).to(dtype),
        torch.zeros(3 * c, device=device).to(dtype),
    )
    position_bias = torch.randn(HEADS, WINDOW**2, 3 * WINDOW**2, device=device).to(dtype)
    keep = None
    if share < 1:
        noise = F.interpolate(torch.randn(1, 1, 6, 10, device=device), (HEIGHT, WIDTH), mode="bicubic")[0]
        keep = noise > noise.flatten().kthvalue(round((1 - share) * noise.numel())).values
    arguments = tokens, weight, bias, position_bias, keep
    return (
        f"masked_window_attention, {share:.0%} kept",
        lambda: masked_window_attention_reference(*arguments, window=WINDOW, shift=WINDOW // 2),
        lambda: fused_masked_window_attention(*arguments, window=WINDOW, shift=WINDOW // 2),
    )


def block_skip(share: float, dtype: torch.dtype, device: str) -> tuple[str, Run, Run]:
    """A share of the tiles, against the whole block by cuDNN."""
    x = maps(dtype, device)[0]
    pixels, held = (y.permute(0, 2, 3, 1).reshape(-1, CHANNELS) for y in (x, x.clone()))
    weight1, weight2 = (torch.randn(2, CHANNELS, CHANNELS, 3, 3, device=device) / 24).to(dtype)
    bias = torch.zeros(CHANNELS, device=device).to(dtype)
    block = BlockWeights(weight1, bias, weight2, bias)
    count = -(-HEIGHT // TILE) * -(-WIDTH // TILE)
    tiles = torch.randperm(count, device=device)[: round(share * count)].sort().values
    return (
        f"block_skip, {share:.0%} of the tiles, against the dense block",
        lambda: block.dense(x),
        lambda: fused_block_residual(pixels, held, weight1, bias, weight2, bias, tiles, HEIGHT, WIDTH, TILE),
    )


def flow_warp(dtype: torch.dtype, device: str) -> tuple[str, Run, Run]:
    """Of a hidden state, to where a channels-last convolution reads it."""
    x = maps(dtype, device)[0]
    flow = torch.randn(1, 2, HEIGHT, WIDTH, device=device) * 3
    return (
        "flow_warp",
        lambda: flow_warp_reference(x, flow).contiguous(memory_format=torch.channels_last),
        lambda: fused_flow_warp(x, flow, False),
    )


def workloads(dtype: torch.dtype, device: str) -> Iterator[tuple[str, Run, Run]]:
    """Name, PyTorch form and kernel."""
    yield hidden_state_attention(dtype, device)
    for share in (1.0, 0.25):
        yield masked_window_attention(share, dtype, device)
    for share in (1.0, 0.25):
        yield block_skip(share, dtype, device)
    yield flow_warp(dtype, device)


def step(config: FastRealConfig, dtype: torch.dtype) -> tuple[float, float]:
    """Milliseconds of FastReal's recurrent step, queued and as a graph."""
    network = FastRealVSR(config).eval().requires_grad_(False).cuda().to(memory_format=torch.channels_last)
    if dtype == torch.float16:
        network.half()
    frame = torch.rand(1, 3, HEIGHT, WIDTH, device="cuda").to(dtype).contiguous(memory_format=torch.channels_last)
    hidden = network.propagate(frame, None, None)
    graph = StepGraph(network.propagate)
    return milliseconds(lambda: network.propagate(frame, frame, hidden)), milliseconds(
        lambda: graph(frame, frame, hidden)
    )


@torch.inference_mode()
def timings() -> None:
    """Print the tables."""
    print(f"\nmilliseconds at {WIDTH}x{HEIGHT} on {torch.cuda.get_device_name()}")
    for dtype in (torch.float16, torch.float32):
        print(f"\n{str(dtype).removeprefix('torch.'):58}   PyTorch    kernel   ratio")
        for name, plain, fused in workloads(dtype, "cuda"):
            before, after = milliseconds(plain), milliseconds(fused)
            print(f"{name:58} {before:9.3f} {after:9.3f} {after / before:7.3f}")
        for name, config in (("compact", COMPACT), ("full size", FastRealConfig())):
            before, after = step(config, dtype)
            print(f"{f'FastReal step, {name}: queued, CUDA graph':58} {before:9.3f} {after:9.3f} {after / before:7.3f}")


def main() -> int:
    """Tests first: a wrong kernel need not be timed."""
    if not torch.cuda.is_available():
        print("check_gpu: PyTorch finds no CUDA device", file=sys.stderr)
        return 1
    print(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), "torch", torch.__version__)
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "cuda", "tests"], cwd=ROOT, check=False)
    timings()
    return tests.returncode


if __name__ == "__main__":
    sys.exit(main())
