"""SkipVSR: BasicVSR and its confidence estimators, trained together to be skipped (ACM MM 2024, section 3).

Training starts from a published BasicVSR checkpoint, whose flow network stays as it is; the same checkpoint, never
skipped, is the teacher. In each batch a threshold is drawn and tiles of blocks are skipped by hard decisions of the
estimators, as in inference, but for two rules: there a block that would run on most tiles runs everywhere, and flow is
zero where neighbouring frames are the same.

The loss (eq. 13) is the Charbonnier distance to the truth, plus the squared error of the estimators (eq. 8), plus the
distance of the student's features to the teacher's (eq. 10 and 11). Where an estimator's decision let a block run, the
gradient of what the block added reaches the estimator as if the decision were its confidence (straight through).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vsvsr import weights
from vsvsr.errors import UserError
from vsvsr.evaluation.metrics import psnr
from vsvsr.models.basicvsr import BasicVSR
from vsvsr.models.basicvsr.network import Direction
from vsvsr.models.common import ResidualBlocksWithInputConv
from vsvsr.models.common.loading import write_tensors
from vsvsr.models.skipvsr import SkipVSR, load
from vsvsr.models.skipvsr.gate import Tally, TileGate, expand, residual_blocks, sample
from vsvsr.models.skipvsr.network import FRAME_TILE
from vsvsr.ops import flow_warp
from vsvsr.training.data.clips import Clips, Crops
from vsvsr.training.harness import AveragedWeights, Optimiser, Processes, Row, Schedule, Stateful, train
from vsvsr.training.losses import charbonnier, inner
from vsvsr.training.recipes.skip_estimators import Samples, fit_estimators, quantiles
from vsvsr.training.settings import AveragedSettings, CropValidationSettings, Option

TARGET_INTERVAL = 6
"""Blocks are judged by their distance to the teacher's feature after the next multiple of this many blocks."""
DIRECTIONS: tuple[Direction, Direction] = ("backward", "forward")
_SCALE = 4
_EPSILON = 1e-12
"""Square of the paper's 1e-6."""
_MOST_SKIPPED = 0.8
"""Thresholds are drawn that skip up to this share."""
MEDIAN = 0.4
"""What kappa makes of the median cost at mid depth. The first blocks cost ten times as much: with a larger kappa tanh
would make most costs alike, and the estimators could not tell these blocks from others."""
_CALIBRATION = 6
"""Crops that give kappa, the estimators to start with, and their quantiles."""
_FORGET = 0.05
"""How fast the table of quantiles follows the estimators."""


@dataclass(frozen=True, kw_only=True)
class Settings(AveragedSettings, CropValidationSettings):
    """Settings of this recipe."""

    steps: int = 100_000
    batch: int = 16
    frames: Annotated[int, Option("length of a sequence", at_least=2)] = 15
    learning_rate: float = 1e-4
    estimator_rate: Annotated[float, Option("learning rate of the estimators")] = 1e-3
    checkpoint: Annotated[str, Option("BasicVSR weights to start from and to be taught by, by name or path")] = (
        "BasicVSR_REDS4"
    )
    skipped: Annotated[
        Literal["identity", "hold"],
        Option("what a skipped block does: pass its input by, as in the paper, or add its last residual again"),
    ] = "identity"
    stride: Annotated[int, Option("blocks that share a decision", at_least=1)] = 1
    alignment: Annotated[int, Option("blocks between features that are aligned with the teacher's; 0 = none are")] = 6
    mask_weight: Annotated[float, Option("of the estimators' error, lambda 1")] = 1.0
    error_weight: Annotated[float, Option("of the distance to the teacher's features, lambda 2")] = 0.1
    dense_share: Annotated[float, Option("share of the batches in which nothing is skipped")] = 0.5
    frozen: Annotated[bool, Option("leave the backbone as it is and train the estimators alone, for comparison")] = (
        False
    )
    checkpointing: Annotated[bool, Option("less memory for long sequences, more time")] = False


class Memory(NamedTuple):
    """What a trunk keeps from one frame of a pass for the next.

    Attributes:
        references: for each decision, the samples that changes are measured against.
        held: the last residual of every block; nothing with the identity.
        entry: the features before the first block.
    """

    references: tuple[Tensor, ...]
    held: tuple[Tensor, ...]
    entry: Tensor


class Frame(NamedTuple):
    """What a trunk makes of one frame.

    Attributes:
        state: ``(n, c, h, w)``.
        maps: sums of squares over the channels of aligned features, ``(layers, n, h, w)``.
        changes: what the estimators see, ``(decisions, n, rows, columns, c)``; none in the first frame of a pass.
        costs: root mean square over a tile of the distance to the teacher's target, ``(decisions, n, rows, columns)``.
        active: which tiles ran, likewise.
        memory: for the next frame.
    """

    state: Tensor
    maps: Tensor
    changes: Tensor
    costs: Tensor
    active: Tensor
    memory: Memory


def target_layer(block: int, blocks: int) -> int:
    """How many blocks the teacher has run at the target of ``block``, counted from 0."""
    return min((block // TARGET_INTERVAL + 1) * TARGET_INTERVAL, blocks)


def spatial_map(features: Tensor) -> Tensor:
    """Sum of squares over the channels, eq. 10: ``(n, c, h, w)`` to fp32 ``(n, h, w)``."""
    return features.float().square().sum(1)


def map_distance(maps: Tensor, taught_maps: Tensor) -> Tensor:
    """Mean over layers of the squared distance of their maps ``(layers, n, h, w)``, relative to the teacher's (eq. 11).

    The teacher's mean square divides, layer by layer: squares of sums of squares are large, and larger in some layers.
    """
    size = taught_maps.square().mean((1, 2, 3))
    return ((maps - taught_maps).square().mean((1, 2, 3)) / (size + 1e-12)).mean()


def tile_distance(features: Tensor, target: Tensor, tile: int) -> Tensor:
    """Root mean square of the difference over the pixels and channels of each tile: fp32 ``(n, rows, columns)``."""
    squares = (features.float() - target.float()).square().mean(1, keepdim=True)
    return F.avg_pool2d(squares, tile, ceil_mode=True, count_include_pad=False)[:, 0].sqrt()


def mask_target(costs: Tensor, kappa: Tensor) -> Tensor:
    """The confidence S that an estimator shall have, eq. 7: ``1 - tanh(kappa * cost)``."""
    return 1 - torch.tanh(kappa * costs)


def gated(
    trunk: ResidualBlocksWithInputConv,
    gate: TileGate,
    x: Tensor,
    memory: Memory | None,
    targets: dict[int, Tensor],
    aligned: Sequence[int],
    *,
    hold: bool,
    stride: int,
) -> Frame:
    """One frame of `GatedTrunk`, on whole maps and with gradients.

    Args:
        trunk: whose blocks run.
        gate: decides.
        x: ``(n, 3 + c, h, w)``.
        memory: of the frame before; None runs everything.
        targets: the teacher's features by the number of blocks before them.
        aligned: numbers of blocks after which `Frame.maps` are taken.
        hold: see `SkipVSR`.
        stride: see `SkipVSR`.
    """
    head, activation, _ = trunk.main
    blocks = residual_blocks(trunk)
    state = activation(head(x))
    if hold and memory is not None:
        renewed = gate(sample(state.detach()), sample(memory.entry.detach()))
        state = torch.where(expand(renewed, gate.tile, state.shape[2:])[:, None], state, memory.entry)
    entry = state
    references, held, maps, changes, costs, actives = [], [], [], [], [], []
    keep: Tensor | None = None
    for m, block in enumerate(blocks):
        if m % stride == 0:
            samples = sample(state.detach())
            if memory is None:
                references.append(samples)
            else:
                reference = memory.references[m // stride]
                change = gate.change(samples, reference)
                execution = gate.execution(change)
                active = gate.decide(execution.detach())
                straight = active.float() + (execution - execution.detach())
                keep = expand(straight, gate.tile, state.shape[2:])[:, None].to(state.dtype)
                references.append(gate.move(reference, samples, active) if hold else samples)
                changes.append(change)
                costs.append(tile_distance(state.detach(), targets[target_layer(m, len(blocks))], gate.tile))
                actives.append(active)
        residual = block.conv2(F.relu(block.conv1(state)))
        if memory is not None and keep is not None:
            residual = keep * residual + (1 - keep) * memory.held[m] if hold else keep * residual
        if hold:
            held.append(residual)
        state = state + residual
        if m + 1 in aligned:
            maps.append(spatial_map(state))

    def stacked(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts) if parts else state.new_zeros(0)

    kept = Memory(tuple(references), tuple(held), entry if hold else entry.new_zeros(0))
    return Frame(state, stacked(maps), stacked(changes), stacked(costs), stacked(actives), kept)


def taught(trunk: ResidualBlocksWithInputConv, x: Tensor, layers: set[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """The teacher's state, and its features after the listed numbers of blocks."""
    head, activation, _ = trunk.main
    state = activation(head(x))
    features = {}
    for m, block in enumerate(residual_blocks(trunk)):
        state = block(state)
        if m + 1 in layers:
            features[m + 1] = state
    return state, features


class Pass(NamedTuple):
    """What both networks make of the frames in one direction; ``states`` in the order of the clip."""

    states: list[Tensor]
    frames: list[Frame]
    taught_maps: list[Tensor]


class Pair:
    """The student, and the teacher that it is compared with frame by frame.

    Args:
        student: its threshold decides, its ``hold`` and ``stride`` say how.
        teacher: frozen.
        alignment: blocks between aligned features, or 0.
        checkpointing: compute a frame again for the gradient instead of keeping it.
    """

    def __init__(self, student: SkipVSR, teacher: BasicVSR, *, alignment: int, checkpointing: bool = False) -> None:
        self.student, self._teacher, self._checkpointing = student, teacher, checkpointing
        count = len(residual_blocks(student.forward_trunk))
        self._aligned = range(alignment, count + 1, alignment) if alignment else range(0)
        self._layers = {target_layer(m, count) for m in range(count)} | set(self._aligned)

    def propagate(self, frames: Tensor) -> dict[Direction, Pass]:
        """Both passes over ``(n, t, 3, h, w)``; sides of at least 33."""
        clip = frames.unbind(1)
        return {direction: self._pass(direction, clip) for direction in DIRECTIONS}

    def _pass(self, direction: Direction, clip: Sequence[Tensor]) -> Pass:
        name = f"{direction}_trunk"
        student, teacher = (getattr(network, name) for network in (self.student, self._teacher))
        gate = self.student.gate(direction)
        ordered = list(reversed(clip)) if direction == "backward" else list(clip)
        state = taught_state = clip[0].new_zeros(len(clip[0]), self.student.fusion.out_channels, *clip[0].shape[-2:])
        made: list[Frame] = []
        maps: list[Tensor] = []
        for i, frame in enumerate(ordered):
            flow = None if i == 0 else _flow(self._teacher, frame, ordered[i - 1])
            with torch.no_grad():
                taught_state, targets = taught(teacher, _joined(frame, taught_state, flow), self._layers)
                maps.append(torch.stack([spatial_map(targets[m]) for m in self._aligned] or [frame.new_zeros(0)]))
            memory = made[-1].memory if made else None
            arguments = (student, gate, _joined(frame, state, flow), memory, targets, self._aligned)
            run = partial(gated, hold=self.student.hold, stride=self.student.stride)
            if self._checkpointing and torch.is_grad_enabled():
                made.append(checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                made.append(run(*arguments))
            state = made[-1].state
        states = [frame.state for frame in made]
        return Pass(states[::-1] if direction == "backward" else states, made, maps)


@torch.no_grad()
def _flow(network: BasicVSR, frame: Tensor, previous: Tensor) -> Tensor:
    with torch.autocast(frame.device.type, enabled=False):
        flow: Tensor = network.spynet(frame, previous)
    return flow


def _joined(frame: Tensor, state: Tensor, flow: Tensor | None) -> Tensor:
    """The input of a trunk; at the start of a pass ``state`` is zero and there is no flow."""
    warped = state if flow is None else flow_warp(state, flow.to(state.dtype))
    return torch.cat((frame, warped), dim=1).contiguous(memory_format=torch.channels_last)


def losses(pair: Pair, frames: Tensor, truth: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The terms of eq. 13 without their weights, the share of tiles that ran, and the confidences E of all decisions.

    Args:
        pair: the networks; the student's threshold is that of this batch.
        frames: ``(n, t, 3, h, w)``.
        truth: ``(n, t, 3, 4h, 4w)``.
    """
    student, clip = pair.student, frames.unbind(1)
    passes = pair.propagate(frames)
    states = zip(*(passes[direction].states for direction in DIRECTIONS), strict=True)
    pictures = [
        student.reconstruct(student.fuse(torch.cat(both, dim=1)), frame)
        for both, frame in zip(states, clip, strict=True)
    ]
    terms = {"loss": charbonnier(inner(torch.stack(pictures, dim=1)).float(), inner(truth), _EPSILON)}
    executions, errors, distances, active = [], [], [], []
    for direction, made in passes.items():
        gate = student.gate(direction)
        for frame, maps in zip(made.frames, made.taught_maps, strict=True):
            if frame.maps.numel():
                distances.append(map_distance(frame.maps, maps))
            if frame.changes.numel():
                execution = gate.execution(frame.changes)
                errors.append((1 - execution - mask_target(frame.costs, student.kappa)).square().mean())
                executions.append(execution.detach().flatten())
                active.append(frame.active.float().mean())
    terms["mask"] = torch.stack(errors).mean()
    if distances:
        terms["error"] = torch.stack(distances).mean()
    terms["executed"] = torch.stack(active).mean()
    return terms, torch.cat(executions)


@torch.no_grad()
def calibrate(pair: Pair, crops: Crops, rng: np.random.Generator, device: torch.device) -> None:
    """Give the student kappa, estimators fitted to the network as it is, and their quantiles."""
    student = pair.student
    student.threshold = 0.0
    samples: dict[Direction, list[Samples]] = {direction: [] for direction in DIRECTIONS}
    for _ in range(_CALIBRATION):
        passes = pair.propagate(crops.batch(rng, 1).to(device).frames)
        for direction, made in passes.items():
            for frame in made.frames[1:]:
                decisions = torch.arange(len(frame.costs), device=device)
                number = decisions.repeat_interleave(frame.costs[0].numel())
                samples[direction].append(Samples(frame.changes.flatten(0, 3), frame.costs.flatten(), number))
    fit_estimators(student, samples, MEDIAN)


class Skip:
    """Student and estimators, as a recipe for `vsvsr.training.harness.train`.

    Args:
        network: a BasicVSR checkpoint as the student, trained in place; a copy of it is the teacher.
        settings: of the run.
        training: crops to learn from.
        validation: crops to judge by.
        processes: share each batch.
    """

    phase = "last"
    best_by = None

    def __init__(
        self, network: SkipVSR, settings: Settings, *, training: Crops, validation: Crops, processes: Processes
    ) -> None:
        processes.check_batch(settings.batch)
        self.settings, self._processes = settings, processes
        self._training, self._validation = training, validation
        self._teacher = copy.deepcopy(network).to(processes.device).requires_grad_(False)
        self.network = network.to(processes.device).requires_grad_(True)
        self.network.hold, self.network.stride = settings.skipped == "hold", settings.stride
        self.network.spynet.requires_grad_(False)
        estimators = [*network.estimator_backward.parameters(), *network.estimator_forward.parameters()]
        if settings.frozen:
            self.network.requires_grad_(False)
            for parameter in estimators:
                parameter.requires_grad_(True)
        own = {id(parameter) for parameter in estimators}
        backbone = [p for p in self.network.parameters() if p.requires_grad and id(p) not in own]
        groups: list[dict[str, Any]] = [{"params": estimators, "lr": settings.estimator_rate}]
        if backbone:
            groups = [{"params": backbone, "lr": settings.learning_rate}, *groups]
        self.averaged = AveragedWeights(self.network, settings.ema)
        self._optimiser = Optimiser(groups, learning_rate=settings.learning_rate, processes=processes, clip=1.0)
        self._schedule = Schedule(steps=settings.steps)
        self._pair = Pair(
            self.network, self._teacher, alignment=settings.alignment, checkpointing=settings.checkpointing
        )

    @property
    def pixels(self) -> int:
        return self.settings.batch * self.settings.frames * self.settings.crop**2

    def step(self, step: int) -> dict[str, float]:
        settings, processes, network = self.settings, self._processes, self.network
        if step == 0:
            calibrate(self._pair, self._training, np.random.default_rng(settings.seed), processes.device)
            self.averaged.network.load_state_dict(network.state_dict())
        rng = np.random.default_rng((settings.seed, step))
        batch = self._training.batch(rng, settings.batch, index=processes.index, count=processes.count)
        batch = batch.to(processes.device)
        skipped = 0.0 if rng.random() < settings.dense_share else rng.uniform(0.0, _MOST_SKIPPED)
        network.threshold = network.threshold_of(1 - skipped)
        with torch.autocast(processes.device.type, dtype=torch.bfloat16, enabled=settings.bf16):
            terms, executions = losses(self._pair, batch.frames, batch.truth)
        factors = {"loss": 1.0, "mask": settings.mask_weight, "error": settings.error_weight, "executed": 0.0}
        total = sum((factors[name] * term for name, term in terms.items()), batch.frames.new_zeros(()))
        if self._optimiser.step(total, self._schedule.share(step)):
            self.averaged.update(step)
            network.quantiles.lerp_(processes.average(quantiles(executions)), _FORGET)
        values = {name: float(term.detach()) for name, term in terms.items()}
        return {"learning_rate": self._optimiser.learning_rate, **values}

    def validate(self, sample: Path) -> Row:
        return validate(self._weights(), self._validation, count=self.settings.validation_crops)

    def export(self, path: Path, metadata: dict[str, str]) -> None:
        settings, tensors = self.settings, self._weights().state_dict()
        facts = {"skipped": settings.skipped, "stride": str(settings.stride), "tile": str(FRAME_TILE)}
        if settings.frozen and any(row.name == settings.checkpoint for row in weights.MANIFEST):
            # The rest is in the published file.
            published = self._teacher.state_dict()
            tensors = {name: value for name, value in tensors.items() if not torch.equal(value, published[name])}
            facts["base"] = settings.checkpoint
        write_tensors(tensors, path, metadata | facts)

    def _weights(self) -> SkipVSR:
        """The averaged network with the table that belongs to the estimators."""
        network = self.averaged.network
        network.kappa.copy_(self.network.kappa)
        network.quantiles.copy_(self.network.quantiles)
        return network

    @property
    def parts(self) -> dict[str, Stateful]:
        return {"network": self.network, "averaged": self.averaged.network, "optimiser": self._optimiser}


BUDGETS = (1.0, 0.7, 0.4)
"""What validation runs with."""


@torch.inference_mode()
def validate(network: SkipVSR, crops: Crops, *, count: int) -> Row:
    """Mean PSNR in dB (RGB) over crops without their borders, and the executed share, for each budget."""
    scores: dict[str, list[float]] = {}
    rng = np.random.default_rng(0)
    device = network.fusion.weight.device
    for _ in range(count):
        crop = crops.batch(rng, 1).to(device)
        clip = crop.frames.unbind(1)
        for budget in BUDGETS:
            network.threshold, network.tally = network.threshold_of(budget), Tally()
            passes = network.passes(clip, range(len(clip)))
            made = [
                network.reconstruct(network.fuse(states), frame)[0] for states, frame in zip(passes, clip, strict=True)
            ]
            result, wanted = (
                255 * inner(x).clamp(0, 1).flatten(0, 1)[None] for x in (torch.stack(made), crop.truth[0])
            )
            scores.setdefault(f"psnr_{budget}", []).append(float(psnr(result, wanted)))
            if budget < 1:
                scores.setdefault(f"executed_{budget}", []).append(network.tally.fraction)
    return {name: float(np.mean(values)) for name, values in scores.items()}


def student(settings: Settings) -> SkipVSR:
    """The network to start from; its estimators are fitted in the first step."""
    return load(weights.find(settings.checkpoint)).network


def run(settings: Settings) -> None:
    """Train."""
    if settings.crop < 33:
        raise UserError(f"--crop {settings.crop} is not possible; allowed: 33 or more, which the flow network needs")
    torch.manual_seed(settings.seed)
    processes = Processes.launched()
    training, validation = (
        Crops(Clips(folder, scale=_SCALE), frames=settings.frames, crop=settings.crop)
        for folder in (settings.data, settings.validation)
    )
    recipe = Skip(student(settings), settings, training=training, validation=validation, processes=processes)
    train(recipe, settings, steps=settings.steps, processes=processes)
