"""What leaving out masked work saves in MIA-VSR, and what a stretch of frames takes in memory.

Speed: one step of a propagation module of the released configuration (120 channels, 24 blocks) with injected masks,
dense, sparse, and as the released test code does it (queries and attention dense, projection and MLP gathered). The
forms alternate and the best of the repeats counts, in seconds of the processor, so that other work on the machine does
little harm; run it with OMP_NUM_THREADS=1.

Memory: peak resident size of a process that makes a stretch of frames, against the stretch's length. Freed blocks go
back to the system at once (glibc's MALLOC_MMAP_THRESHOLD_), or the allocator's habits would hide what is counted.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr.models.mia import MIAVSR
from vsvsr.models.mia.block import BlockMemory, MaskedBlock
from vsvsr.models.mia.propagation import PropagationModule

WINDOW = 8


def scattered(ratio: float, height: int, width: int, seed: int) -> Tensor:
    """Positions kept at random."""
    generator = torch.Generator().manual_seed(seed)
    return _top(torch.rand(1, height, width, generator=generator), ratio)


def clustered(ratio: float, height: int, width: int, seed: int) -> Tensor:
    """Kept positions in blobs of some 30 pixels, as moving objects give them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, height // 32 + 2, width // 32 + 2, generator=generator)
    return _top(F.interpolate(coarse, (height, width), mode="bicubic")[0], ratio)


def _top(field: Tensor, ratio: float) -> Tensor:
    if ratio >= 1:
        return torch.ones_like(field, dtype=torch.bool)
    return field > field.flatten().quantile(1 - ratio)


def partition(x: Tensor) -> Tensor:
    """``(1, d, h, w, c)`` to ``(windows, d * 64, c)``."""
    _, frames, height, width, channels = x.shape
    x = x.view(frames, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return x.permute(1, 3, 0, 2, 4, 5).reshape(-1, frames * WINDOW**2, channels)


def unpartition(windows: Tensor, height: int, width: int) -> Tensor:
    """``(windows, 64, c)`` to ``(1, h, w, c)``."""
    x = windows.view(height // WINDOW, width // WINDOW, WINDOW, WINDOW, -1)
    return x.transpose(1, 2).reshape(1, height, width, -1)


def released_mask(height: int, width: int) -> Tensor:
    """The attention mask of shifted windows, as it is kept by the released code: ``(windows, 192, 192)``."""
    regions = torch.zeros(1, 1, height, width, 1)
    bands = (slice(0, -8), slice(-8, -4), slice(-4, None))
    for number, (down, right) in enumerate((a, b) for a in bands for b in bands):
        regions[:, :, down, right] = number
    ids = partition(regions.expand(1, 3, -1, -1, -1)).squeeze(-1)
    return (ids[:, None] != ids[:, :, None]).float() * -100.0


def released_block(
    block: MaskedBlock, stack: Tensor, memory: list[Tensor], keep: Tensor, shift_mask: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The released test path, step by step; ``memory`` holds tokens and attention in windows, and the MLP's output."""
    height, width, channels = stack.shape[2:]
    shift = block.shift
    attn = block.attn
    shortcut = stack[:, -1].contiguous()
    tokens = F.pad(block.norm1(stack), (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
    padded_height, padded_width = tokens.shape[2:4]
    keep = F.pad(keep[..., None].float(), (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
    if shift:
        tokens, keep = tokens.roll((-shift, -shift), (2, 3)), keep.roll((-shift, -shift), (1, 2))
    windows = partition(tokens)
    current = windows[:, 128:]
    torch.sigmoid(attn.predmask.rnn((current - memory[0]).abs()) / (2 / 3)) >= 0.5  # noqa: B015  # its cost belongs here
    pred = partition(keep[:, None])
    kept, dropped = indices(pred)
    qkv = attn.qkv(windows).view(len(windows), 192, 3, attn.heads, -1).permute(2, 0, 3, 1, 4).contiguous()
    query = qkv[0][:, :, 128:] * (channels // attn.heads) ** -0.5
    logits = query @ qkv[1].transpose(-2, -1)
    bias = attn.relative_position_bias_table[attn.relative_position_index.flatten()].view(64, 192, -1)
    logits = logits + bias.permute(2, 0, 1).contiguous()[None]
    if shift:
        logits = logits + shift_mask[:, None, 128:]
    x = (logits.softmax(-1) @ qkv[2]).transpose(1, 2).reshape(1, -1, channels)
    attention = fill(x, attn.proj(x[0, kept]), memory[1].view(-1, channels)[dropped], kept, dropped)
    merged = torch.cat((attention.view(len(windows), 64, channels), pred), -1)
    merged = unpartition(merged, padded_height, padded_width)
    if shift:
        merged = merged.roll((shift, shift), (1, 2))
    merged = merged[:, :height, :width].contiguous()
    x = shortcut + merged[..., :-1].contiguous()
    normed = block.norm2(x).view(1, -1, channels)
    kept, dropped = indices(merged[..., -1])
    hidden = fill(normed, block.mlp(normed[0, kept]), memory[2].view(-1, channels)[dropped], kept, dropped).view_as(x)
    return x + hidden, [current, attention.view(len(windows), 64, channels), hidden]


def indices(pred: Tensor) -> tuple[Tensor, Tensor]:
    """Kept and dropped positions, by sorting."""
    order = torch.argsort(pred.reshape(-1), descending=True)
    count = int(pred.sum())
    return order[:count], order[count:]


def fill(like: Tensor, new: Tensor, old: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
    """New and old rows put together."""
    result = torch.zeros_like(like)
    result[0, kept] = new
    result[0, dropped] = old
    return result


class Bench:
    """One module, the features of a step, and the memories of the step before."""

    def __init__(self, height: int, width: int) -> None:
        torch.manual_seed(0)
        self.size = (height, width)
        self.module = PropagationModule(120, (6,) * 4, (6,) * 4, WINDOW, masked=True).eval()
        self.blocks: list[MaskedBlock] = [b for stage in self.module.layers for b in stage.residual_group.blocks]
        self.frames = [0.1 * torch.randn(1, height, width, 120) for _ in range(4)]
        self.memories: list[BlockMemory | None] = [None] * 24
        self.module(self.frames[:1] * 3, self.memories, _never)
        self.shift_mask = released_mask(height + -height % WINDOW, width + -width % WINDOW)
        self.released_memories = [self._windowed(b, m) for b, m in zip(self.blocks, self.memories, strict=True) if m]

    def _windowed(self, block: MaskedBlock, memory: BlockMemory) -> list[Tensor]:
        result = []
        for x in (memory.tokens, memory.attention):
            x = F.pad(x, (0, 0, 0, -self.size[1] % WINDOW, 0, -self.size[0] % WINDOW))
            x = x.roll((-block.shift, -block.shift), (1, 2))
            result.append(partition(x[:, None]))
        return [*result, memory.mlp.clone()]

    def ours(self, masks: list[Tensor], sparse: bool) -> Tensor:
        """One step; the memories of this object stay as they were, the copy is not timed."""
        memories = [BlockMemory(m.tokens.clone(), m.attention.clone(), m.mlp.clone()) for m in self.memories if m]
        start = time.process_time()
        result = self.module(self.frames[1:], list(memories), lambda index, _: masks[index], sparse=sparse)
        self.seconds = time.process_time() - start
        return result

    def released(self, masks: list[Tensor]) -> Tensor:
        """One step in the released form."""
        start = time.process_time()
        stack = self.module.patch_embed.norm(torch.stack(self.frames[1:], dim=1))
        past, x = stack[:, :-1], stack[:, -1]
        index = 0
        for stage in self.module.layers:
            refined = x
            for block in stage.residual_group.blocks:
                stacked = torch.cat((past, refined[:, None]), dim=1).contiguous()
                memory = self.released_memories[index]
                refined, _ = released_block(block, stacked, memory, masks[index], self.shift_mask)
                index += 1
            x = x + stage.conv(refined.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1)
        x = self.module.norm(x).permute(0, 3, 1, 2)
        result = self.frames[-1] + self.module.conv_after_body(x).permute(0, 2, 3, 1)
        self.seconds = time.process_time() - start
        return result


def _never(index: int, logits: Tensor) -> Tensor:
    raise AssertionError("there is no memory yet")


def speed(height: int, width: int, repeats: int, ratios: list[float]) -> None:
    """The table of times."""
    bench = Bench(height, width)
    print(f"one step of a propagation module, {width}x{height}, {torch.get_num_threads()} threads, {repeats} repeats")
    print(f"{'masks':<16}{'dense':>9}{'released':>10}{'sparse':>9}  {'dense/sparse':>13}{'released/sparse':>17}")
    patterns: list[Callable[[float, int, int, int], Tensor]] = [scattered, clustered]
    for ratio in ratios:
        for pattern in patterns if ratio < 1 else patterns[:1]:
            masks = [pattern(ratio, height, width, seed) for seed in range(24)]
            forms = {
                "dense": lambda masks=masks: bench.ours(masks, sparse=False),
                "released": lambda masks=masks: bench.released(masks),
                "sparse": lambda masks=masks: bench.ours(masks, sparse=True),
            }
            results = {name: form() for name, form in forms.items()}
            for name in ("released", "sparse"):
                torch.testing.assert_close(results[name], results["dense"], rtol=1e-4, atol=1e-4)
            times: dict[str, list[float]] = {name: [] for name in forms}
            for _ in range(repeats):
                for name, form in forms.items():
                    form()
                    times[name].append(bench.seconds)
            dense, released, sparse = (min(times[name]) for name in ("dense", "released", "sparse"))
            label = f"{ratio} {pattern.__name__ if ratio < 1 else ''}"
            print(
                f"{label:<16}{dense:>8.3f}s{released:>9.3f}s{sparse:>8.3f}s"
                f"  {dense / sparse:>13.2f}{released / sparse:>17.2f}",
                flush=True,
            )


def memory(side: int, lengths: list[int]) -> None:
    """The table of peaks, each in a process of its own."""
    print(f"\npeak resident size against the stretch, {side}x{side}, 120 channels, one block a module")
    frame = 120 * side**2 * 4 / 1e6
    print(f"{'frames':>6}{'chunks':>8}{'peak MB':>9}{'over first':>12}{'counted':>9}   ({frame:.1f} MB a feature map)")
    first = None
    for length, chunks in [(length, 1) for length in lengths] + [(lengths[1], 3)]:
        command = [sys.executable, "-m", "scripts.bench.mia", "--peak", str(side), str(length), str(chunks)]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144"}
        result = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        peak = int(result.stdout) / 1e3
        first = first or peak
        counted = frame * (length - lengths[0])
        print(f"{length:>6}{chunks:>8}{peak:>9.0f}{peak - first:>12.0f}{counted:>9.0f}", flush=True)


def peak(side: int, length: int, chunks: int) -> None:
    """Make ``chunks`` stretches one after the other; print the peak resident size in kB."""
    network = MIAVSR(120, (1,), (6,)).eval()
    planes = torch.empty(3, 4 * side, 4 * side)
    for _ in range(chunks):
        frames = [torch.rand(1, 3, side, side) for _ in range(length)]
        for frame, features in zip(frames, network.features(frames, range(length)), strict=True):
            network.render(features, frame, list(planes))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.0, 0.6, 0.3, 0.1], help="shares that are kept")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    parser.add_argument("--peak", type=int, nargs=3, metavar=("SIDE", "LENGTH", "CHUNKS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with torch.inference_mode():
        if arguments.peak:
            peak(*arguments.peak)
        elif arguments.memory:
            memory(64, [4, 8, 16, 24])
        else:
            speed(arguments.height, arguments.width, arguments.repeats, arguments.ratios)


if __name__ == "__main__":
    main()
