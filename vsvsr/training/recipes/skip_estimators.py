"""Confidence estimators of SkipVSR for a frozen BasicVSR checkpoint.

The estimators see how much a block's input changed since an earlier frame, averaged over a tile, and predict what it
would cost to add that frame's residual again instead of running the block: the root mean square over the tile of the
difference of the two residuals, times ``kappa``, through tanh (the role of eq. 7 in the paper). The network itself is
not trained. Clips are photographs under a moving camera, a resting camera, and a resting camera with a moving object.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsvsr import weights
from vsvsr.files import check_target
from vsvsr.models.basicvsr.network import Direction, Trunk
from vsvsr.models.common import ResidualBlock, ResidualBlocksWithInputConv
from vsvsr.models.common.loading import write_tensors
from vsvsr.models.skipvsr import SkipVSR, load
from vsvsr.models.skipvsr.gate import block_weights, sample, tile_mean
from vsvsr.models.skipvsr.network import FRAME_TILE
from vsvsr.training.data.degradation import shrink
from vsvsr.training.data.motion import Shot, synthetic_clip
from vsvsr.training.data.pictures import find_pictures, load_photograph
from vsvsr.training.harness import minimise
from vsvsr.training.settings import Option

SIZE, FRAMES, SCALE = (384, 640), 8, 4
"""Height and width of the high-resolution frames, frames of a clip, scale of the network."""
_OBJECT = Shot(camera="still", front="medium")
SHOTS = (_OBJECT, Shot(camera="medium"), _OBJECT, Shot(camera="slow"), Shot(camera="still"))
"""In turn: most blocks can be skipped where little moves."""
GAPS = (1, 2, 4)
"""Distances between the frames compared: a held residual may be older than one frame."""
MEDIAN = 1.6
"""What kappa makes of the median cost at mid depth, so that the useful thresholds lie well inside 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of this recipe."""

    photographs: Annotated[Path, Option("folder of photographs, searched recursively", positional=True)]
    target: Annotated[Path, Option("safetensors file to write", positional=True)]
    checkpoint: Annotated[str, Option("an installed BasicVSR checkpoint")]
    clips: Annotated[int, Option("clips to compare frames of")] = 12
    seed: Annotated[int, Option("of everything random")] = 1


class Samples(NamedTuple):
    """Average change ``(k, 64)``, cost ``(k,)``, block number ``(k,)``."""

    change: Tensor
    cost: Tensor
    block: Tensor


def clip(photographs: list[np.ndarray], shot: Shot, rng: np.random.Generator) -> Tensor:
    """Low-resolution frames ``(t, 3, h, w)`` in [0, 1] in steps of 1/255, some of them with a little noise."""
    truth = synthetic_clip(photographs, rng, frames=FRAMES, size=SIZE, scale=SCALE, shot=shot).frames
    small = shrink(truth, scale=SCALE).astype(np.float32)
    small += rng.choice((0.0, 0.0, 0.5, 1.5)) * rng.standard_normal(small.shape, np.float32)
    return torch.from_numpy(small.clip(0, 255).round()).permute(0, 3, 1, 2) / 255


class Recorder(SkipVSR):
    """The dense network, which keeps samples of both passes in ``samples``."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: dict[Direction, list[Samples]] = {"backward": [], "forward": []}

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


def record(network: Recorder, photographs: list[np.ndarray], clips: int, rng: np.random.Generator) -> None:
    """Run ``clips`` clips through the dense network."""
    for i in range(clips):
        shot = SHOTS[i % len(SHOTS)]
        frames = [frame[None] for frame in clip(photographs, shot, rng)]
        with torch.no_grad():
            for _ in network.passes(frames, range(len(frames))):
                continue
        print(f"clip {i + 1}/{clips}, {shot}", flush=True)


def fit(estimator: nn.Linear, samples: Samples, kappa: float) -> float:
    """Least squares on the confidence S (eq. 8); returns the share of the target's variance that is explained."""
    target = 1 - torch.tanh(kappa * samples.cost)
    scale = samples.change.mean()
    # Adam's steps are relative to the inputs' size, so the inputs are brought to size 1 and the weights back after.
    inputs = samples.change / scale
    weight = nn.Parameter(torch.zeros_like(estimator.weight))
    bias = nn.Parameter(torch.full_like(estimator.bias, float(torch.logit(target.mean()))))

    def loss() -> Tensor:
        batch = torch.randint(len(target), (min(len(target), 16384),))
        return (torch.sigmoid(F.linear(inputs[batch], weight, bias)[:, 0]) - target[batch]).square().mean()

    minimise([weight, bias], loss, steps=600, learning_rate=0.02)
    with torch.no_grad():
        estimator.weight.copy_(weight / scale)
        estimator.bias.copy_(bias)
        error = (torch.sigmoid(estimator(samples.change))[:, 0] - target).square().mean()
    return 1 - float(error / target.var())


def quantiles(values: Tensor) -> Tensor:
    """101 quantiles, from 0 to 1."""
    ordered = values.sort().values
    return ordered[torch.linspace(0, len(values) - 1, 101).round().long()].contiguous()


@torch.no_grad()
def fit_estimators(network: SkipVSR, samples: Mapping[Direction, Sequence[Samples]], median: float) -> None:
    """Give a network kappa, estimators fitted to the samples of both passes, and the quantiles of E.

    Args:
        network: changed in place.
        samples: of each pass.
        median: what kappa makes of the median cost at mid depth.
    """
    whole = {direction: Samples(*map(torch.cat, zip(*parts, strict=True))) for direction, parts in samples.items()}
    middle = int(whole["forward"].block.max() + 1) // 2
    cost = torch.cat([part.cost[part.block == middle] for part in whole.values()]).median()
    network.kappa.fill_(median / float(cost))
    executions = []
    for direction, part in whole.items():
        estimator = network.estimator_backward if direction == "backward" else network.estimator_forward
        with torch.enable_grad():
            explained = fit(estimator, part, float(network.kappa))
        print(f"{direction}: {len(part.cost)} samples, {explained:.3f} of the variance", flush=True)
        executions.append(network.gate(direction).execution(part.change))
    network.quantiles.copy_(quantiles(torch.cat(executions)))


def run(settings: Settings) -> None:
    """Record, fit and export."""
    check_target(settings.target)
    rng = np.random.default_rng(settings.seed)
    torch.manual_seed(settings.seed)
    photographs = [load_photograph(path, SIZE) for path in find_pictures(settings.photographs)]
    network = Recorder()
    network.load_state_dict(load(weights.find(settings.checkpoint)).network.state_dict())
    record(network, photographs, settings.clips, rng)
    fit_estimators(network, network.samples, MEDIAN)
    own = ("estimator_", "kappa", "quantiles")
    tensors = {name: value for name, value in network.state_dict().items() if name.startswith(own)}
    write_tensors(
        tensors, settings.target, {"checkpoint": settings.checkpoint, "skipped": "hold", "tile": str(FRAME_TILE)}
    )
    print(f"kappa {network.kappa:.3f}, quantiles of E {[round(q, 3) for q in network.quantiles[::10].tolist()]}")
