"""Write triton_kernels/REPORT.md: resources of every compiled kernel, and its bytes against those of the eager form.

Needs no GPU.
"""

import importlib.metadata
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from triton.backends.compiler import GPUTarget
from vsvsr.triton_kernels import lucas_kanade, unpack_planes  # type: ignore[import-not-found]  # its own folder
from vsvsr.triton_kernels.ahead_of_time import (  # type: ignore[import-not-found]  # its own folder
    DTYPES,
    LAUNCHES,
    SHARED_MEMORY,
    compile_cuda_c,
)

from scripts.simulated_gpu import SimulatedGPU, Traffic, move
from vsvsr.models.basicvsr import BasicVSR
from vsvsr.models.fastreal import COMPACT, FastRealConfig, FastRealVSR
from vsvsr.models.fastreal.attention import SelectiveCrossAttention
from vsvsr.models.fastreal.config import PLAIN
from vsvsr.models.fastreal.flow import LightFlow
from vsvsr.models.mia import MIAVSR
from vsvsr.models.skipvsr import SkipVSR
from vsvsr.models.ultra import FULL, build
from vsvsr.models.ultra.network import run_whole
from vsvsr.ops import pin_convolutions
from vsvsr.ops.block_skip import BlockWeights
from vsvsr.ops.flow_warp import flow_warp_reference, fused_flow_warp
from vsvsr.ops.masked_window_attention import fused_masked_window_attention, window_table
from vsvsr.ops.unpack_planes import unpack_planes_reference

REPORT = Path(__file__).parents[1] / "triton_kernels" / "REPORT.md"
HEIGHT, WIDTH, BYTES = 270, 480, 2
PIXELS = HEIGHT * WIDTH
CHANNELS = 64
TILE = 16
ATTENTION_CHANNELS, HEADS, WINDOW, FRAMES = 120, 6, 8, 3
KEPT = 0.25


@dataclass(frozen=True)
class GPU:
    """Published peaks: bytes/s of memory, FLOP/s of fp16 tensor products with fp32 sums, FLOP/s of fp32."""

    name: str
    bandwidth: float
    tensor: float
    scalar: float

    def seconds(self, work: "Work") -> float:
        """The roofline: whichever takes longer, memory or arithmetic."""
        return max(work.bytes / self.bandwidth, work.flops / (self.tensor if work.tensor_cores else self.scalar))


GPUS = (
    GPU("RTX 3090", 936e9, 71e12, 35.6e12),
    GPU("RTX 4090", 1008e9, 165e12, 82.6e12),
    GPU("A100", 2039e9, 312e12, 19.5e12),
    GPU("H100", 3350e9, 989e12, 67e12),
)


@dataclass(frozen=True)
class Work:
    """Bytes moved, operations of products, kernels launched."""

    bytes: float
    flops: float
    launches: int
    tensor_cores: bool = True


class EagerTraffic(Traffic):  # type: ignore[no-untyped-call]
    """Does not execute large products and the kernels: their results are left empty."""

    SKIPPED = ("aten::addmm", "aten::mm", "aten::bmm", "aten::convolution", "vsvsr::")

    def result(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What the operation gives."""
        if not func.name().startswith(self.SKIPPED):
            return super().result(func, args, kwargs)
        shapes = tree_map_only(Tensor, lambda x: x.to("meta"), args)
        return tree_map_only(Tensor, lambda x: torch.empty_like(x, device="cpu"), func(*shapes, **kwargs))


def counted(run: Callable[[], object]) -> Work:
    """What an eager form does."""
    flops = FlopCounterMode(display=False)
    with torch.no_grad(), flops, EagerTraffic() as traffic:
        run()
    return Work(traffic.bytes, flops.get_total_flops(), traffic.launches)


@dataclass(frozen=True)
class Row:
    """One comparison: the eager form, the form with the kernel, and the kernel alone."""

    name: str
    eager: Work
    fused: Work
    kernel: Work


@contextmanager
def kernels_forced(operation: str) -> Iterator[None]:
    """The operation takes its kernel whatever the device."""
    with mock.patch(f"vsvsr.ops.{operation}.runs_kernels", return_value=True):
        yield


def half(*shape: int) -> Tensor:
    """An empty map, channels last where it has four dimensions."""
    x = torch.empty(shape, dtype=torch.float16)
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def hidden_state_attention() -> Row:
    """The whole module: the paper's order against one convolution each, then the kernel."""
    hidden, features = half(1, CHANNELS, HEIGHT, WIDTH), half(1, CHANNELS, HEIGHT, WIDTH)
    paper = SelectiveCrossAttention(FastRealConfig()).half()
    fast = SelectiveCrossAttention(FastRealConfig(fast_sca=True)).half()
    members, taps = len(FastRealConfig().pool), 25
    eager = counted(lambda: paper(hidden, features))
    with kernels_forced("hidden_state_attention"):
        fused = counted(lambda: fast(hidden, features))
    flops = PIXELS * taps * (2 * CHANNELS + 2 * members) * 2
    kernel = Work(4 * CHANNELS * PIXELS * BYTES, flops, 1, tensor_cores=False)
    return Row("hidden_state_attention, with its convolutions", eager, fused, kernel)


def released_window_attention(
    tokens: Tensor, weight: Tensor, bias: Tensor, position_bias: Tensor, mask: Tensor
) -> Tensor:
    """Attention over shifted windows as transformers of the Swin family are released: roll, partition, every logit.

    ``mask`` is M for every window, ``(windows, 1, positions, frames * positions)``.
    """
    shift = WINDOW // 2
    padded = F.pad(tokens, (0, 0, 0, -WIDTH % WINDOW, 0, -HEIGHT % WINDOW)).roll((-shift, -shift), (2, 3))
    batch, frames, height, width, channels = padded.shape
    rows, columns = height // WINDOW, width // WINDOW
    windows = padded.view(batch, frames, rows, WINDOW, columns, WINDOW, channels).permute(0, 2, 4, 1, 3, 5, 6)
    windows = windows.reshape(rows * columns, frames * WINDOW**2, channels)
    current = windows[:, -(WINDOW**2) :]
    dim = channels // HEADS

    def heads(x: Tensor) -> Tensor:
        return x.view(len(x), -1, HEADS, dim).transpose(1, 2)

    query = heads(F.linear(current.contiguous(), weight[:channels], bias[:channels])) * dim**-0.5
    key, value = map(heads, F.linear(windows, weight[channels:], bias[channels:]).chunk(2, dim=-1))
    logits = query @ key.transpose(-2, -1)
    logits = logits + position_bias
    logits = logits + mask
    attended = (logits.softmax(-1) @ value).transpose(1, 2).reshape(rows, columns, WINDOW, WINDOW, channels)
    merged: Tensor = attended.permute(0, 2, 1, 3, 4).reshape(batch, height, width, channels)
    return merged.roll((shift, shift), (1, 2))[:, :HEIGHT, :WIDTH].contiguous()


def kept_pixels(*, clustered: bool) -> Tensor:
    """A mask that keeps a quarter of the pixels: in patches, as moving objects are, or anywhere."""
    generator = torch.Generator().manual_seed(0)
    size = (6, 10) if clustered else (HEIGHT, WIDTH)
    noise = F.interpolate(torch.randn(1, 1, *size, generator=generator), (HEIGHT, WIDTH), mode="bicubic")[0]
    kept: Tensor = noise > noise.flatten().kthvalue(round((1 - KEPT) * PIXELS)).values
    return kept


def masked_window_attention() -> list[Row]:
    """The operation with its projections: dense, and with a quarter of the queries."""
    c = ATTENTION_CHANNELS
    tokens, weight, bias = half(1, FRAMES, HEIGHT, WIDTH, c), half(3 * c, c), half(3 * c)
    position_bias = half(HEADS, WINDOW**2, FRAMES * WINDOW**2)
    windows = -(-HEIGHT // WINDOW) * -(-WIDTH // WINDOW)
    mask = half(windows, WINDOW**2, FRAMES * WINDOW**2)[:, None]
    released = counted(lambda: released_window_attention(tokens, weight, bias, position_bias, mask))
    rows = []
    for name, keep in (
        ("all kept", None),
        ("25 % kept in patches", kept_pixels(clustered=True)),
        ("25 % kept anywhere", kept_pixels(clustered=False)),
    ):
        arguments = tokens, weight, bias, position_bias, keep
        fused = counted(partial(fused_masked_window_attention, *arguments, window=WINDOW, shift=WINDOW // 2))
        table, _ = window_table(HEIGHT, WIDTH, WINDOW, WINDOW // 2, torch.device("cpu"))
        kept = PIXELS if keep is None else int(keep.sum())
        wanted = torch.ones(PIXELS + 1) if keep is None else F.pad(keep.flatten().float(), (0, 1))
        active = float((wanted[table].sum(1) > 0).float().mean())
        # K and V of active windows, queries in, results out, and the lists.
        moved = active * FRAMES * PIXELS * 2 * c * BYTES + 2 * kept * c * BYTES + kept * 4 + table.numel() * 4
        flops = kept * FRAMES * WINDOW**2 * c * 4
        label = f"masked_window_attention, {name}, {active:.0%} of the windows active"
        # The counter takes all of K and V as read.
        unread = (1 - active) * FRAMES * PIXELS * 2 * c * BYTES
        fused = Work(fused.bytes - unread, fused.flops + flops, fused.launches)
        rows.append(Row(label, released, fused, Work(moved, flops, 1)))
    return rows


def projecting(active: float, kept: float) -> float:
    """MB moved by a kernel that also projects K and V of active windows itself."""
    return (active * FRAMES + kept) * PIXELS * ATTENTION_CHANNELS * BYTES / 1e6


def block_skip(share: float) -> Row:
    """A residual block on a share of the tiles, against the block on the whole map."""
    x = half(1, CHANNELS, HEIGHT, WIDTH)
    weights = [half(CHANNELS, CHANNELS, 3, 3) for _ in range(2)]
    block = BlockWeights(weights[0], half(CHANNELS), weights[1], half(CHANNELS))
    eager = counted(lambda: x + block.dense(x))
    tiles = share * PIXELS / TILE**2
    areas = (TILE + 4) ** 2 + 2 * (TILE + 2) ** 2 + TILE**2
    moved = tiles * areas * CHANNELS * BYTES + 2 * 9 * CHANNELS**2 * BYTES
    flops = tiles * ((TILE + 2) ** 2 + TILE**2) * 9 * CHANNELS**2 * 2
    kernel = Work(moved, flops, 2)
    addition = 3 * PIXELS * CHANNELS * BYTES
    return Row(f"block_skip, {share:.0%} of the tiles", eager, Work(moved + addition, flops, 3), kernel)


def flow_warp() -> Row:
    """The hidden state's warp, to where a channels-last convolution reads it."""
    x, flow = half(1, CHANNELS, HEIGHT, WIDTH), torch.empty(1, 2, HEIGHT, WIDTH)
    eager = counted(lambda: flow_warp_reference(x, flow).contiguous(memory_format=torch.channels_last))
    fused = counted(lambda: fused_flow_warp(x, flow, False))
    kernel = Work(fused.bytes, PIXELS * CHANNELS * 8, 1, tensor_cores=False)
    return Row("flow_warp", eager, fused, kernel)


def light_flow() -> Row:
    """The whole flow between two frames of 960x540: five levels, nine steps, five corrections."""
    frames = [half(1, 3, 540, 960) for _ in range(2)]
    network = LightFlow().requires_grad_(False)
    eager = counted(lambda: network(*frames))
    operations = ("grey_pyramid", "lucas_kanade", "flow_correction")
    with ExitStack() as stack:
        for operation in operations:
            stack.enter_context(kernels_forced(operation))
        fused = counted(lambda: network(*frames))
    sides = [(544 >> level, 960 >> level) for level in range(network.levels)]
    pixels = sum(height * width for height, width in sides)
    # Between its three launches a correction writes and reads 16 channels twice.
    moved = fused.bytes + pixels * 4 * 16 * 4
    products = 2 * pixels * 9 * (5 * 16 + 16 * 16 + 16 * 2)
    inner = lucas_kanade.ROWS - 10, lucas_kanade.COLUMNS - 10
    for level, (height, width) in enumerate(sides):
        programs = -(-height // inner[0]) * -(-width // inner[1])
        products += programs * 12 * 2 * lucas_kanade.ROWS**3 * (1 if level == 0 else 2)
    kernel = Work(moved, products, fused.launches + 2 * network.levels, tensor_cores=False)
    return Row("light flow, 960x540", eager, kernel, kernel)


def finish_convolution() -> Row:
    """Bias, PReLU and residual behind a convolution."""
    x, residual, bias = half(1, CHANNELS, HEIGHT, WIDTH), half(1, CHANNELS, HEIGHT, WIDTH), half(CHANNELS)
    eager = counted(lambda: F.prelu(x.add_(bias[:, None, None]), bias).add_(residual))
    moved = 3 * PIXELS * CHANNELS * BYTES
    kernel = Work(moved, 3 * PIXELS * CHANNELS, 1, tensor_cores=False)
    return Row("finish_convolution", eager, kernel, kernel)


@dataclass(frozen=True)
class FilterFrame:
    """A filter at work.

    Attributes:
        name: of the filter and its network.
        size: width and height of its frames.
        make: the network.
        run: gives the pictures of the frames, one by one.
        plain: whether PyTorch's forms launch the same whatever the values.
    """

    name: str
    size: tuple[int, int]
    make: Callable[[], nn.Module]
    run: Callable[[Any, list[Tensor]], Iterator[None]]
    plain: bool = True


def fastreal_frames(network: FastRealVSR, frames: list[Tensor]) -> Iterator[None]:
    """As in linear playback."""
    before, hidden = None, None
    for frame in frames:
        hidden = network.propagate(frame, before, hidden)
        before = frame
        network.render(hidden, frame, planes_for(frame))
        yield


def chunk_frames(network: BasicVSR, frames: list[Tensor]) -> Iterator[None]:
    """One chunk."""
    for write in network.chunk(frames, range(len(frames))):
        write(planes_for(frames[0]))
        yield


def mia_frames(network: MIAVSR, frames: list[Tensor]) -> Iterator[None]:
    """One chunk."""
    for frame, features in zip(frames, network.features(frames, range(len(frames))), strict=True):
        network.render(features, frame, planes_for(frame))
        yield


def planes_for(frame: Tensor) -> Sequence[Tensor]:
    """Four times the size."""
    return frame.new_empty(3, 4 * frame.shape[2], 4 * frame.shape[3]).unbind()


FILTERS = (
    FilterFrame("FastReal, `fastreal-x4`", (960, 540), partial(FastRealVSR, PLAIN), fastreal_frames),
    FilterFrame("FastReal, `fastreal-compact-x4`", (960, 540), partial(FastRealVSR, COMPACT), fastreal_frames),
    FilterFrame("Skip, every block", (320, 180), SkipVSR, chunk_frames),
    FilterFrame("Skip, a quarter of the tiles", (320, 180), partial(SkipVSR, threshold=0.5), chunk_frames),
    FilterFrame("MIA, masked", (320, 180), MIAVSR, mia_frames, plain=False),
)


def of_a_frame(filter_frame: FilterFrame, *, kernels: bool) -> tuple[float, float, float]:
    """Launches, bytes and waits that one frame more costs, in fp16."""
    width, height = filter_frame.size
    problem = None if kernels else "counted without"
    network = filter_frame.make().eval().requires_grad_(False)
    pin_convolutions(network)
    network.half()
    counts = []
    with (
        mock.patch("vsvsr.ops.dispatch.kernel_problem", return_value=problem),
        FakeTensorMode(),
        torch.inference_mode(),
        # Its sampler has no form for fake tensors; convolutions are pinned and do not look here.
        torch.backends.cudnn.flags(enabled=False),
    ):
        move(network)
        for count in (3, 5):
            frames = [torch.empty(1, 3, height, width, dtype=torch.half, device="cuda") for _ in range(count)]
            with SimulatedGPU() as traffic:
                for _ in filter_frame.run(network, frames):
                    pass
            counts.append((traffic.launches, traffic.bytes, traffic.waits))
    launches, moved, waits = ((many - few) / 2 for few, many in zip(*counts, strict=True))
    return launches, moved, waits


def filter_table() -> Iterator[str]:
    """Launches, bytes and waits of every filter."""
    yield "| a frame of | size | PyTorch: launches, GB, waits | with the kernels |"
    yield "| --- " * 4 + "|"
    for row in FILTERS:
        cells = [] if row.plain else ["depends on the picture"]
        for kernels in (False, True) if row.plain else (True,):
            launches, moved, waits = of_a_frame(row, kernels=kernels)
            cells.append(f"{launches:.0f}, {moved / 1e9:.2f}, {waits:.0f}")
        yield f"| {row.name} | {row.size[0]}x{row.size[1]} | " + " | ".join(cells) + " |"
    ultra = ultra_traffic(180, 320)
    yield f"| Ultra | 320x180 | {ultra.launches}, {ultra.bytes / 1e9:.0f}, {ultra.waits} | has none |"


@torch.inference_mode()
def ultra_traffic(height: int, width: int) -> SimulatedGPU:
    """A frame of the full configuration in fp16, without what a stream shifts to its neighbours.

    Meta tensors have no values, so nothing waits for one.
    """
    with torch.device("meta"):
        network = build(FULL).half()
        pin_convolutions(network)
        unet, decoder = network.unet_steps(520, half(1, 77, 1024)), network.decoder_steps()
        enlarged = half(1, 3, 4 * height, 4 * width)
        with SimulatedGPU() as traffic:
            run_whole(decoder, run_whole(unet, network.encode(enlarged)))
    return traffic  # type: ignore[no-any-return]


def compiled_table() -> Iterator[str]:
    """Registers, spills, shared memory and tensor-core instructions per kernel, type and target."""
    yield "| kernel | type | " + " | ".join(f"sm_{capability}" for capability in SHARED_MEMORY) + " | AMD gfx942 |"
    yield "| --- " * (len(SHARED_MEMORY) + 3) + "|"
    for name, launch in LAUNCHES.items():
        for dtype in ("fp16", "fp32"):
            cells = []
            for capability in SHARED_MEMORY:
                usage = launch(dtype).usage(capability)
                instructions = launch(dtype).tensor_core_instructions(capability)
                cells.append(f"{usage.registers} / {usage.stack} / {usage.shared / 1024:.1f} / {instructions}")
            cells.append(amd(launch(dtype)))
            yield f"| {name} | {dtype} | " + " | ".join(cells) + " |"
    for dtype in ("fp16", "fp32"):
        source = unpack_planes.source(DTYPES[dtype], DTYPES[dtype])
        usages = [compile_cuda_c(source, capability) for capability in SHARED_MEMORY]
        cells = [f"{usage.registers} / {usage.stack} / {usage.shared / 1024:.1f} / 0" for usage in usages]
        yield f"| unpack_planes (CUDA C) | {dtype} | " + " | ".join(cells) + " | |"


def amd(launch: Any) -> str:
    """Vector registers, spilled ones and shared memory on gfx942, or what its compiler says."""
    try:
        compiled = launch.compile(GPUTarget("hip", "gfx942", 64))
    except Exception as error:  # a report, not a gate: whatever the compiler raises is the finding
        return f"{type(error).__name__}"
    numbers = [re.search(rf"\.{key}:\s+(\d+)", compiled.asm["amdgcn"]) for key in ("vgpr_count", "vgpr_spill_count")]
    registers, spills = (found.group(1) if found else "?" for found in numbers)
    return f"{registers} / {spills} / {compiled.metadata.shared / 1024:.1f}"


def traffic_table(rows: list[Row]) -> Iterator[str]:
    """Bytes, products and launches of the eager form and of the one with the kernel."""
    yield "| operation | eager: MB, GFLOP, launches | with the kernel | share of the bytes | kernel alone: MB | share |"
    yield "| --- " * 6 + "|"
    for row in rows:
        eager, fused = (
            f"{work.bytes / 1e6:.0f}, {work.flops / 1e9:.1f}, {work.launches}" for work in (row.eager, row.fused)
        )
        yield (
            f"| {row.name} | {eager} | {fused} | {row.fused.bytes / row.eager.bytes:.3f} "
            f"| {row.kernel.bytes / 1e6:.1f} | {row.kernel.bytes / row.eager.bytes:.3f} |"
        )


def roofline_table(rows: list[Row]) -> Iterator[str]:
    """Predicted microseconds."""
    yield "| operation | FLOP per byte | " + " | ".join(gpu.name for gpu in GPUS) + " |"
    yield "| --- " * (len(GPUS) + 2) + "|"
    for row in rows:
        cells = []
        for gpu in GPUS:
            times = [gpu.seconds(work) * 1e6 for work in (row.kernel, row.fused, row.eager)]
            cells.append(" / ".join(f"{time:.0f}" for time in times))
        yield f"| {row.name} | {row.kernel.flops / row.kernel.bytes:.1f} | " + " | ".join(cells) + " |"


def main() -> None:
    """Write the report."""
    rows = [hidden_state_attention(), *masked_window_attention(), block_skip(1.0), block_skip(0.25), flow_warp()]
    rows += [light_flow(), finish_convolution()]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("triton", "torch"))
    unpack_eager = counted(lambda: unpack_planes_reference(torch.empty(3, 540, 960), 960, torch.float16))
    unpacked = 3 * 540 * 960 * (4 + 2)
    saved = (unpack_eager.bytes - unpacked) / rows[-2].kernel.bytes
    unpack_now = f"{unpacked / 1e6:.0f} MB"
    unpack_plain = f"{unpack_eager.launches} and {unpack_eager.bytes / 1e6:.0f} MB"
    text = f"""No time in this report was measured: it was made without a GPU by
`python -m scripts.kernel_report` ({versions}).

## Resources of the compiled kernels

Registers of a thread / bytes spilled / KiB of shared memory / tensor-core instructions in the machine code. Spills and
shared memory beyond a target's limit fail the tests. AMD: vector registers / spilled / KiB; for
information only, since `vsvsr` runs the PyTorch forms there.

{chr(10).join(compiled_table())}

## Bytes

Maps in fp16, {CHANNELS} channels (attention over windows: {ATTENTION_CHANNELS}), {WIDTH}x{HEIGHT}.
The eager form is counted operation by operation: each one that is not a view reads its tensors once and writes its
results once. The kernel's own bytes are compulsory traffic: pixels in the halos of several programs count once, because
caches hold them. FLOPs are those of convolutions and matrix products, for a kernel alone all of its
multiplications and additions.

Eager means: for hidden state attention the paper's order, every member of the pool filtered and convolved; for window
attention roll, partition and all logits in memory, as released, whatever is kept; for block skip the dense block. With
the kernel means everything between the same tensors, so with K and V projected everywhere (the kernel alone begins
after the projections), and with the addition of held residuals over the whole map, which skipping cannot avoid.

Window attention that also projected K and V itself, for active windows only, would move {projecting(1.0, 1.0):.0f} MB
with all pixels kept and {projecting(0.3, KEPT):.0f} MB with a quarter of them in patches. It would do 1.7 times the
products, because a head's 20 channels fill 32 of the tensor cores' and 120 inputs fill 128: on cards with little
arithmetic per byte that may cost more than it saves. It was not implemented, because it could not be timed.

Window attention in fp16 reads a window's keys and values once for all of its 64 queries, where it read them once for
16 of them, so up to four times (from caches, which this table does not count). In fp32, 64 queries spill on sm_80.

`unpack_planes` brings an fp32 frame of 960x540 to fp16 in 2 launches, the flag's zero included, and {unpack_now}, where
PyTorch's form takes {unpack_plain}: it bounds, converts and looks for samples that are not finite
in one pass. What it saves is {saved:.0%} of all that the light flow moves for that frame, so it stays. Reading the
host's memory from a kernel, in place of a copy across the bus, was not tried: only time could tell.

The light flow is a step's whole flow between two fp16 frames of 960x540, in fp32 inside: nine steps of Lucas and Kanade
with one launch each, five corrections with three, and one launch for both pyramids. With the rest of the step it makes
58 launches of the compact network's 596 before, and 68 of 611 with the trunk of `fastreal-x4`; a bias inside a
convolution counts as one, because cuDNN adds it in a launch of its own.

{chr(10).join(traffic_table(rows))}

## Frames

One frame in fp16 on a GPU, counted on tensors that have a device but no values: kernel launches, bytes, and how often
the host waits for the device. A step and its picture in linear playback; in chunks one frame more. Where it depends on
the picture, a quarter of the tiles or positions is taken. Bytes of `block_residual` and of window attention are those
of their tensors, not of the chosen part. Copies to and from the host are left out.

{chr(10).join(filter_table())}

## Roofline

Microseconds if memory and arithmetic ran at their published peaks, for the kernel alone / everything with the kernel /
the eager form. Real times are longer; compare ratios only. Peaks (GB/s, TFLOP/s of fp16 products, of fp32):
{"; ".join(f"{g.name} {g.bandwidth / 1e9:.0f}, {g.tensor / 1e12:.0f}, {g.scalar / 1e12:.1f}" for g in GPUS)}.

{chr(10).join(roofline_table(rows))}
"""
    REPORT.write_text(text)
    print(REPORT)


if __name__ == "__main__":
    main()
