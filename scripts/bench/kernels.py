"""Times the kernels against PyTorch, and FastReal's step queued against its CUDA graph, on an NVIDIA GPU."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.bench import harness
from vsvsr.engine.graph import CudaCapture, Recorder, copied
from vsvsr.models.fastreal import COMPACT, FastRealConfig, FastRealVSR
from vsvsr.ops.block_skip import BlockWeights, fused_block_residual
from vsvsr.ops.flow_warp import flow_warp_reference, fused_flow_warp
from vsvsr.ops.hidden_state_attention import (
    fused_hidden_state_attention,
    hidden_state_attention_reference,
    member_filters,
)
from vsvsr.ops.masked_window_attention import fused_masked_window_attention, masked_window_attention_reference

HEIGHT, WIDTH, CHANNELS, TILE = 270, 480, 64, 16
ATTENTION_CHANNELS, HEADS, WINDOW = 120, 6, 8

type Run = Callable[[], object]


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
    active = torch.tensor([len(tiles)], device=device)
    first, second = block.by_tap
    return (
        f"block_skip, {share:.0%} of the tiles, against the dense block",
        lambda: block.dense(x),
        lambda: fused_block_residual(pixels, held, first, bias, second, bias, tiles, active, HEIGHT, WIDTH, TILE),
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


def step(config: FastRealConfig, dtype: torch.dtype) -> dict[str, harness.Measure]:
    """FastReal's recurrent step, queued and as a graph."""
    network = FastRealVSR(config).eval().requires_grad_(False).cuda().to(memory_format=torch.channels_last)
    if dtype == torch.float16:
        network.half()
    frame = torch.rand(1, 3, HEIGHT, WIDTH, device="cuda").to(dtype).contiguous(memory_format=torch.channels_last)
    hidden = network.propagate(frame, None, None)
    graph = Recorder(CudaCapture(torch.device("cuda", 0)))(copied(network.propagate))
    return {
        "queued": harness.on_gpu(lambda: network.propagate(frame, frame, hidden)),
        "graph": harness.on_gpu(lambda: graph(frame, frame, hidden)),
    }


@torch.inference_mode()
def compare(results: harness.Results, rounds: int) -> None:
    """Milliseconds of the GPU and ratios."""
    for dtype in (torch.float16, torch.float32):
        name = f"{WIDTH}x{HEIGHT} {str(dtype).removeprefix('torch.')}"
        for operation, plain, fused in workloads(dtype, "cuda"):
            times = harness.in_turn(
                {"PyTorch": harness.on_gpu(plain), "kernel": harness.on_gpu(fused)}, rounds, warmups=3
            )
            add(results, f"{name}, {operation}", times)
        for size, config in (("compact", COMPACT), ("full size", FastRealConfig())):
            add(results, f"{name}, FastReal step, {size}", harness.in_turn(step(config, dtype), rounds, warmups=3))


def add(results: harness.Results, case: str, times: harness.Rounds) -> None:
    """A row: both forms, and the second over the first."""
    before, after = times.seconds
    figures = {f"{form} ms": times.median(form) * 1e3 for form in (before, after)}
    results.add(case, {**figures, f"{after}/{before}": times.ratio(after, before)})


def main() -> None:
    """The command line."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    compare(harness.Results("kernels", arguments.csv), arguments.rounds)


if __name__ == "__main__":
    main()
