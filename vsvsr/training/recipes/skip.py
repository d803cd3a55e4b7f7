"""Fit the confidence estimators of SkipVSR to a frozen BasicVSR checkpoint.

``python -m vsvsr.training.recipes.skip --photos FOLDER --checkpoint BasicVSR_REDS4 --out FILE``

The estimators see how much a block's input changed since an earlier frame, averaged over a tile, and predict what it
would cost to add that frame's residual again instead of running the block: the root mean square over the tile of the
difference of the two residuals, times ``kappa``, through tanh (the role of eq. 7 in the paper). The network itself is
not trained. Clips are photographs under a moving camera, a resting camera, and a resting camera with a moving object.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from vsvsr import weights
from vsvsr.models.basicvsr.network import BLOCKS, Direction, Trunk
from vsvsr.models.common import ResidualBlock, ResidualBlocksWithInputConv
from vsvsr.models.skipvsr import SkipVSR, load
from vsvsr.models.skipvsr.gate import block_weights, sample, tile_mean
from vsvsr.models.skipvsr.network import FRAME_TILE

HEIGHT, WIDTH, FRAMES = 96, 160, 8
GAPS = (1, 2, 4)
"""Distances between the frames compared: a held residual may be older than one frame."""
MEDIAN = 1.6
"""What kappa makes of the median cost at mid depth, so that the useful thresholds lie well inside 0 to 1."""


class Samples(NamedTuple):
    """Average change ``(k, 64)``, cost ``(k,)``, block number ``(k,)``."""

    change: Tensor
    cost: Tensor
    block: Tensor


def photo(path: Path, rng: random.Random) -> Tensor:
    """A photograph ``(3, h, w)`` in [0, 1], reduced until JPEG blocks and sensor noise are gone."""
    picture = Image.open(path).convert("RGB")
    width = rng.choice((1000, 1300, 1700))
    picture = picture.resize((width, picture.height * width // picture.width), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def clip(scene: Tensor, other: Tensor, kind: str, rng: random.Random) -> list[Tensor]:
    """LR frames ``(3, HEIGHT, WIDTH)`` of a scene: bicubic x1/4, rounded to 8 bit."""
    height, width = 4 * HEIGHT, 4 * WIDTH
    speed = {"pan": rng.uniform(1, 12), "drift": rng.uniform(0.1, 1)}.get(kind, 0.0)
    angle = rng.uniform(0, 2 * np.pi)
    side = rng.randrange(32, 128)
    y, x = rng.randrange(scene.shape[1] - height), rng.randrange(scene.shape[2] - width)
    object_y, object_x = rng.uniform(0, height - side), rng.uniform(0, width - side)
    velocity = rng.uniform(-8, 8), rng.uniform(-8, 8)
    noise = rng.choice((0.0, 0.0, 0.5, 1.5)) / 255
    frames = []
    for i in range(FRAMES):
        dy, dx = speed * i * np.sin(angle), speed * i * np.cos(angle)
        top = round(min(max(y + dy, 0), scene.shape[1] - height))
        left = round(min(max(x + dx, 0), scene.shape[2] - width))
        frame = scene[:, top : top + height, left : left + width].clone()
        if kind == "object":
            oy = round(min(max(object_y + velocity[0] * i, 0), height - side))
            ox = round(min(max(object_x + velocity[1] * i, 0), width - side))
            frame[:, oy : oy + side, ox : ox + side] = other[:, :side, :side]
        small = F.interpolate(frame[None], scale_factor=0.25, mode="bicubic", antialias=True)[0]
        small = small + noise * torch.randn(small.shape)
        frames.append((small.clamp(0, 1) * 255).round() / 255)
    return frames


class Recorder(SkipVSR):
    """The dense network, which keeps samples of both passes in ``samples``."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: dict[str, list[Samples]] = {"backward": [], "forward": []}

    def trunk(self, direction: Direction) -> Trunk:
        trunk = self.backward_trunk if direction == "backward" else self.forward_trunk
        history: list[list[tuple[Tensor, Tensor]]] = []

        def run(x: Tensor) -> Tensor:
            state, seen = _dense(trunk, x)
            for gap in GAPS:
                if len(history) >= gap:
                    self.samples[direction].append(_compare(seen, history[-gap]))
            history.append(seen)
            del history[: -max(GAPS)]
            return state

        return run


def _dense(trunk: ResidualBlocksWithInputConv, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The trunk's output, and the sampled input and the residual of every block."""
    head, activation, blocks = trunk.main
    state = activation(head(x))
    seen = []
    for block in blocks.children():
        assert isinstance(block, ResidualBlock)
        residual = block_weights(block).dense(state)
        seen.append((sample(state), residual))
        state = state + residual
    return state, seen


def _compare(now: list[tuple[Tensor, Tensor]], before: list[tuple[Tensor, Tensor]]) -> Samples:
    changes, costs, blocks = [], [], []
    for m, ((samples, residual), (old_samples, old_residual)) in enumerate(zip(now, before, strict=True)):
        change = tile_mean((samples - old_samples).abs(), FRAME_TILE).flatten(0, 2)
        squares = (residual - old_residual).square().mean(1, keepdim=True)
        cost = F.avg_pool2d(squares, FRAME_TILE, ceil_mode=True, count_include_pad=False).sqrt().flatten()
        changes.append(change)
        costs.append(cost)
        blocks.append(torch.full_like(cost, m, dtype=torch.long))
    return Samples(torch.cat(changes), torch.cat(costs), torch.cat(blocks))


def record(network: Recorder, photos: list[Path], clips: int, rng: random.Random) -> None:
    """Run ``clips`` clips through the dense network."""
    kinds = ("object", "pan", "object", "drift", "still")
    for i, (path, kind) in enumerate(zip(_cycle(photos, rng), kinds * clips, strict=False)):
        if i == clips:
            break
        scene, other = photo(path, rng), photo(rng.choice(photos), rng)
        frames = [frame[None] for frame in clip(scene, other, kind, rng)]
        with torch.no_grad():
            for _ in network.passes(frames, range(len(frames))):
                continue
        print(f"clip {i + 1}/{clips} {kind} {path.name}", flush=True)


def _cycle(photos: list[Path], rng: random.Random) -> Iterator[Path]:
    while True:
        yield from rng.sample(photos, len(photos))


def fit(estimator: nn.Linear, samples: Samples, kappa: float) -> float:
    """Least squares on the confidence S (eq. 8); returns the share of the target's variance that is explained."""
    target = 1 - torch.tanh(kappa * samples.cost)
    scale = samples.change.mean()
    nn.init.constant_(estimator.weight, -1.0 / (len(estimator.weight[0]) * float(scale)))
    nn.init.constant_(estimator.bias, 2.0)
    # Adam's steps are relative to the inputs' size, so the inputs are brought to size 1 and the weights back after.
    inputs = samples.change / scale
    weight = (estimator.weight.detach() * scale).requires_grad_()
    bias = estimator.bias.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        batch = torch.randint(len(target), (16384,))
        loss = (torch.sigmoid(F.linear(inputs[batch], weight, bias)[:, 0]) - target[batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        estimator.weight.copy_(weight / scale)
        estimator.bias.copy_(bias)
        error = (torch.sigmoid(estimator(samples.change))[:, 0] - target).square().mean()
    return 1 - float(error / target.var())


def _quantiles(values: Tensor) -> Tensor:
    """101 quantiles, from 0 to 1."""
    ordered = values.sort().values
    return ordered[torch.linspace(0, len(values) - 1, 101).round().long()].contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit the confidence estimators of SkipVSR.")
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photographs, searched recursively")
    parser.add_argument("--checkpoint", required=True, help="an installed BasicVSR checkpoint")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=12)
    arguments = parser.parse_args()
    rng = random.Random(1)
    torch.manual_seed(1)
    network = Recorder()
    load(network, weights.find(arguments.checkpoint))
    photos = sorted(path for path in arguments.photos.rglob("*") if path.suffix in {".jpg", ".png"})
    record(network, photos, arguments.clips, rng)
    tensors = {}
    middle = torch.cat([part.cost[part.block == BLOCKS // 2] for parts in network.samples.values() for part in parts])
    kappa = MEDIAN / float(middle.median())
    executions = []
    for direction, parts in network.samples.items():
        estimator = network.estimator_backward if direction == "backward" else network.estimator_forward
        samples = Samples(*(torch.cat(column) for column in zip(*parts, strict=True)))
        explained = fit(estimator, samples, kappa)
        print(f"{arguments.checkpoint} {direction}: {len(samples.cost)} samples, {explained:.3f} of the variance")
        tensors[f"estimator_{direction}.weight"] = estimator.weight.detach()
        tensors[f"estimator_{direction}.bias"] = estimator.bias.detach()
        with torch.no_grad():
            executions.append(torch.sigmoid(-estimator(samples.change))[:, 0])
    tensors["kappa"] = torch.tensor(kappa)
    tensors["quantiles"] = _quantiles(torch.cat(executions))
    save_file(tensors, arguments.out, {"checkpoint": arguments.checkpoint, "tile": str(FRAME_TILE)})
    print(f"kappa {kappa:.3f}, quantiles of E {[round(q, 3) for q in tensors['quantiles'][::10].tolist()]}")


if __name__ == "__main__":
    main()
