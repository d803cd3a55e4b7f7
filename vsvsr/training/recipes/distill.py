"""FastRealVSR taught by the pictures of a published network, which `teach` has written beside the clips.

The truth is no function of the degraded frames: a network that is trained on it alone averages over what it could
have been. The teacher's pictures are, so their sharpness can be learnt. The truth keeps the result faithful, a loss on
flicker keeps it steadier than the teacher, and, optionally, a discriminator makes texture where both are averaged.
The mean of two teachers' pictures is nearer to the truth than either, because they err in different ways.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from vsvsr import weights
from vsvsr.errors import UserError
from vsvsr.models.fastreal import FastRealVSR, load
from vsvsr.models.fastreal.config import PLAIN
from vsvsr.models.fastreal.warm_start import from_per_frame, halved
from vsvsr.models.realesrgan import SRVGG, load_ncnn, load_published
from vsvsr.training.discriminator import Adversary, check_crop
from vsvsr.training.harness import Processes, train
from vsvsr.training.losses import charbonnier, temporal_consistency
from vsvsr.training.recurrent import Chunk, RecurrentSettings, RecurrentTraining, continued, open_clips
from vsvsr.training.settings import Option, check_shares
from vsvsr.training.teach import Teacher, target_name

_FAMILIES = {"eq. 9": 0, "noisy capture": 1, "light": 2, "clean": 2, "heavy": 3}
"""Positions in the teacher's shares."""
_START = "realesr-animevideov3"


@dataclass(frozen=True, kw_only=True)
class Settings(RecurrentSettings):
    """Settings of this recipe."""

    frames: int = 15
    learning_rate: float = 3e-4
    final_rate: float = 0.03
    warmup: int = 100
    ema: float = 0.998
    teacher: Annotated[Teacher, Option("whose pictures to learn from")] = "realesrgan-x4plus"
    heavy_teacher: Annotated[Teacher, Option("whose pictures to learn heavily degraded clips from")] = (
        "realesrgan-x4plus"
    )
    second_teacher: Annotated[Teacher | None, Option("whose pictures are mixed with those of the others")] = None
    second_share: Annotated[float, Option("of --second-teacher in the mixture")] = 0.35
    start: Annotated[Path | None, Option("FastReal weights to start from; by default Real-ESRGAN's animevideov3")] = (
        None
    )
    scale: Annotated[Literal[2, 4] | None, Option("by default that of --start; 2 learns from halved pictures")] = None
    published: Annotated[Path | None, Option(f"the published .pth of {_START}, instead of the installed file")] = None
    flow: Annotated[str, Option("shipped weights whose flow estimator a warm start takes")] = "fastreal-compact-x4"
    state_gain: Annotated[float, Option("of the state's weights in a warm start, relative to the others")] = 0.15
    attention_rate: Annotated[float, Option("learning rate of the hidden state attention")] = 1e-3
    # Under noise the teacher knows least, and the truth is nearly determined by the earlier frames.
    shares: Annotated[
        tuple[float, float, float, float],
        Option(
            "of the teacher in the pixel loss, the rest is the truth's: for clips of eq. 9, noisy captures, light or "
            "clean ones, heavy ones"
        ),
    ] = (0.6, 0.3, 0.4, 0.6)
    temporal_consistency: Annotated[float, Option("weight of the loss on flicker")] = 0.3
    gan: Annotated[float, Option("weight of the adversarial loss; 0 = none")] = 0.0
    discriminator_rate: Annotated[float, Option("learning rate of the discriminator, constant")] = 1e-4
    discriminator_channels: Annotated[int, Option("width of the discriminator")] = 16


class Losses:
    """Distances to the teacher's pictures and to the truth, flicker, and what the discriminator takes for made."""

    def __init__(self, settings: Settings, adversary: Adversary | None) -> None:
        self._settings, self._adversary = settings, adversary
        self._teachers = dict.fromkeys(_FAMILIES, settings.teacher) | {"heavy": settings.heavy_teacher}

    def __call__(self, chunk: Chunk) -> dict[str, Tensor]:
        losses = {"teacher": chunk.pictures.new_zeros(()), "truth": chunk.pictures.new_zeros(())}
        for i, family in enumerate(chunk.families):
            share, count = self._share(family), len(chunk.families)
            taught = charbonnier(chunk.pictures[i], self._target(chunk, i))
            losses["teacher"] = losses["teacher"] + share / count * taught
            true = charbonnier(chunk.pictures[i], chunk.truth[i])
            losses["truth"] = losses["truth"] + (1 - share) / count * true
        if self._settings.temporal_consistency and chunk.pictures.shape[1] > 1:
            flicker = temporal_consistency(chunk.pictures, chunk.truth, chunk.flows, charbonnier)
            losses["temporal_consistency"] = self._settings.temporal_consistency * flicker
        if self._adversary is not None:
            losses["gan"] = self._settings.gan * self._adversary.loss(chunk.pictures)
        return losses

    def _target(self, chunk: Chunk, i: int) -> Tensor:
        """What the teachers make of a sequence."""
        target = chunk.targets[target_name(self._teachers[chunk.families[i]])][i]
        if self._settings.second_teacher is None:
            return target
        return target.lerp(chunk.targets[target_name(self._settings.second_teacher)][i], self._settings.second_share)

    def _share(self, family: str) -> float:
        """Of the teacher, in the pixel loss of a clip."""
        return self._settings.shares[_FAMILIES[family]]


def network(settings: Settings) -> FastRealVSR:
    """The network to start from."""
    torch.manual_seed(settings.seed)
    if settings.start is not None:
        return continued(settings.start, scale=settings.scale, hsa=settings.hsa)
    if settings.published is not None:
        published = load_published(_START, settings.published)
    else:
        published = load_ncnn(_START, weights.install(_START))
    assert isinstance(published, SRVGG)
    flow = load(weights.verify(settings.flow)).network.flow_estimator
    started = from_per_frame(published, flow, state_gain=settings.state_gain, hsa=settings.hsa or PLAIN.hsa)
    return halved(started) if settings.scale == 2 else started


def run(settings: Settings) -> None:
    """Train."""
    check_shares(settings, "shares", "second_share")
    processes = Processes.launched()
    taught = network(settings).to(processes.device)
    teachers = {settings.teacher, settings.heavy_teacher, settings.second_teacher}
    targets = sorted(target_name(teacher) for teacher in teachers if teacher is not None)
    training, validation = open_clips(taught, settings, processes, targets=targets)
    if unknown := training.clips.families - _FAMILIES.keys():
        raise UserError(f"{settings.data} has clips of the family {min(unknown)!r}; allowed: {', '.join(_FAMILIES)}")
    adversary = None
    if settings.gan:
        check_crop(settings.crop, taught.scale)
        adversary = Adversary(
            settings.discriminator_channels,
            learning_rate=settings.discriminator_rate,
            processes=processes,
            bf16=settings.bf16,
        )
    recipe = RecurrentTraining(
        taught,
        settings,
        Losses(settings, adversary),
        opponent=adversary,
        training=training,
        validation=validation,
        processes=processes,
        parameters=_groups(taught, settings),
        best_by=None,
    )
    train(recipe, settings, steps=settings.steps, processes=processes)


def _groups(taught: FastRealVSR, settings: Settings) -> list[dict[str, object]]:
    """The attention starts from nothing and learns faster than the trunk, which starts from trained weights."""
    parameters = {name: value for name, value in taught.named_parameters() if value.requires_grad}
    attention = [value for name, value in parameters.items() if name.startswith("hsa.")]
    others = [value for name, value in parameters.items() if not name.startswith("hsa.")]
    groups: list[dict[str, object]] = [{"params": others, "lr": settings.learning_rate}]
    return [*groups, {"params": attention, "lr": settings.attention_rate}] if attention else groups
