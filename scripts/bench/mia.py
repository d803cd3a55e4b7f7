"""What leaving out masked work saves in MIA-VSR, and what a run of frames takes in memory.

Speed: one step of a propagation module of the released configuration (120 channels, 24 blocks) with injected masks,
dense, sparse, and as the released test code does it (queries and attention dense, projection and MLP gathered), in CPU
time, which other work on the machine changes little; use ``--threads 1``.

Memory: peak resident size of a process that upscales a run of frames, against the number of frames. Freed blocks go
back to the system at once (glibc's MALLOC_MMAP_THRESHOLD_), so that the allocator's cache does not count.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from scripts.bench import harness
from vsvsr.models.mia import MIAVSR
from vsvsr.models.mia.block import BlockMemory, MaskedBlock
from vsvsr.models.mia.propagation import PropagationModule, Stage

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
    windows: Tensor = rearrange(x, "1 d (rows a) (columns b) c -> (rows columns) (d a b) c", a=WINDOW, b=WINDOW)
    return windows


def unpartition(windows: Tensor, height: int) -> Tensor:
    """``(windows, 64, c)`` to ``(1, h, w, c)``."""
    x: Tensor = rearrange(
        windows, "(rows columns) (a b) c -> 1 (rows a) (columns b) c", rows=height // WINDOW, a=WINDOW, b=WINDOW
    )
    return x


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
    padded_height = tokens.shape[2]
    keep = F.pad(keep[..., None].float(), (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
    if shift:
        tokens, keep = tokens.roll((-shift, -shift), (2, 3)), keep.roll((-shift, -shift), (1, 2))
    windows = partition(tokens)
    current = windows[:, 128:]
    assert attn.predmask is not None
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
    merged = unpartition(merged, padded_height)
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


class Step:
    """One step of a propagation module: the features of its frames, and what its blocks remember of the step before."""

    def __init__(self, height: int, width: int) -> None:
        torch.manual_seed(0)
        self.size = (height, width)
        self.module = PropagationModule(120, (6,) * 4, (6,) * 4, WINDOW, masked=True).eval()
        self.stages = [module for module in self.module.modules() if isinstance(module, Stage)]
        self.frames = [0.1 * torch.randn(1, height, width, 120) for _ in range(4)]
        memories: list[BlockMemory | None] = [None] * 24
        self.module(self.frames[:1] * 3, memories, _never)
        self.memories = [memory for memory in memories if memory is not None]
        self.shift_mask = released_mask(height + -height % WINDOW, width + -width % WINDOW)
        blocks = [block for stage in self.stages for block in blocks_of(stage)]
        self.released_memories = [self._windowed(*pair) for pair in zip(blocks, self.memories, strict=True)]

    def _windowed(self, block: MaskedBlock, memory: BlockMemory) -> list[Tensor]:
        result = []
        for x in (memory.tokens, memory.attention):
            x = F.pad(x, (0, 0, 0, -self.size[1] % WINDOW, 0, -self.size[0] % WINDOW))
            x = x.roll((-block.shift, -block.shift), (1, 2))
            result.append(partition(x[:, None]))
        return [*result, memory.mlp.clone()]

    def ours(self, masks: list[Tensor], *, sparse: bool) -> tuple[Tensor, harness.Time]:
        """The result, and the time without the copy of the memories, which the step replaces."""
        memories = [BlockMemory(m.tokens.clone(), m.attention.clone(), m.mlp.clone()) for m in self.memories]
        return harness.timed(
            lambda: self.module(self.frames[1:], list(memories), lambda index, _: masks[index], sparse=sparse)
        )

    def released(self, masks: list[Tensor]) -> tuple[Tensor, harness.Time]:
        """The same in the released form."""
        return harness.timed(lambda: self._released(masks))

    def _released(self, masks: list[Tensor]) -> Tensor:
        stack = self.module.patch_embed.norm(torch.stack(self.frames[1:], dim=1))
        past, x = stack[:, :-1], stack[:, -1]
        remembered = zip(self.released_memories, masks, strict=True)
        for stage in self.stages:
            refined = x
            for block in blocks_of(stage):
                memory, mask = next(remembered)
                stacked = torch.cat((past, refined[:, None]), dim=1).contiguous()
                refined, _ = released_block(block, stacked, memory, mask, self.shift_mask)
            x = x + stage.conv(refined.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1)
        x = self.module.norm(x).permute(0, 3, 1, 2)
        result: Tensor = self.frames[-1] + self.module.conv_after_body(x).permute(0, 2, 3, 1)
        return result


def blocks_of(stage: Stage) -> list[MaskedBlock]:
    """In order."""
    return [module for module in stage.modules() if isinstance(module, MaskedBlock)]


def _never(index: int, logits: Tensor) -> Tensor:
    raise AssertionError("there is no memory yet")


@torch.inference_mode()
def speed(results: harness.Results, height: int, width: int, rounds: int, ratios: list[float]) -> None:
    """CPU seconds of one step: the best of the rounds."""
    step = Step(height, width)
    patterns = (scattered, clustered)
    for ratio in ratios:
        for pattern in patterns if ratio < 1 else patterns[:1]:
            masks = [pattern(ratio, height, width, seed) for seed in range(24)]
            forms: dict[str, Callable[[], tuple[Tensor, harness.Time]]] = {
                "dense": partial(step.ours, masks, sparse=False),
                "released": partial(step.released, masks),
                "sparse": partial(step.ours, masks, sparse=True),
            }
            outputs = {name: form()[0] for name, form in forms.items()}
            for name in ("released", "sparse"):
                torch.testing.assert_close(outputs[name], outputs["dense"], rtol=1e-4, atol=1e-4)
            times = harness.in_turn({name: cpu_seconds(form) for name, form in forms.items()}, rounds, warmups=0)
            figures = {f"{name} s": times.best(name) for name in forms}
            figures["dense/sparse"] = times.ratio("dense", "sparse")
            figures["released/sparse"] = times.ratio("released", "sparse")
            label = f"{width}x{height}, {ratio:.0%} kept"
            results.add(label if ratio == 1 else f"{label}, {pattern.__name__}", figures)


def cpu_seconds(form: Callable[[], tuple[Tensor, harness.Time]]) -> harness.Measure:
    """Measure by the time that the form itself took."""
    return lambda: form()[1].cpu


def memory(results: harness.Results, side: int, lengths: list[int]) -> None:
    """Peaks in MB, each in a process of its own."""
    frame = 120 * side**2 * 4 / 1e6
    first = None
    for length, runs in [(length, 1) for length in lengths] + [(lengths[1], 3)]:
        settings = {"MALLOC_MMAP_THRESHOLD_": "262144"}
        peak = harness.in_fresh_process(peak_of, side, length, runs, environment=settings)
        first = first or peak
        figures = {"peak MB": peak, "over first": peak - first, "feature maps MB": frame * (length - lengths[0])}
        results.add(f"{side}x{side}, {runs} x {length} frames", figures)


@torch.inference_mode()
def peak_of(side: int, length: int, runs: int) -> float:
    """Peak resident size in MB of upscaling ``runs`` times ``length`` frames, 120 channels, one block a module."""
    network = MIAVSR(120, (1,), (6,)).eval()
    planes = torch.empty(3, 4 * side, 4 * side)
    for _ in range(runs):
        frames = [torch.rand(1, 3, side, side) for _ in range(length)]
        for frame, features in zip(frames, network.features(frames, range(length)), strict=True):
            network.render(features, frame, list(planes))
    return harness.peak_megabytes()


def main() -> None:
    """The command line."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.0, 0.6, 0.3, 0.1], help="shares that are kept")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    arguments = parser.parse_args()
    results = harness.Results("mia", arguments.csv)
    if arguments.memory:
        memory(results, 64, [4, 8, 16, 24])
    else:
        speed(results, arguments.height, arguments.width, arguments.rounds, arguments.ratios)


if __name__ == "__main__":
    main()
