"""FastRealVSR with pixel, perceptual and adversarial losses: stage 2 of the paper, on what stage 1 made.

PSNR falls in this stage: the last weights are exported, and the sample pictures tell which are best.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr.models.fastreal import FastRealVSR, load
from vsvsr.training.data.clips import Clips, Crops
from vsvsr.training.discriminator import Adversary, check_crop
from vsvsr.training.harness import Processes, train
from vsvsr.training.losses import Perceptual
from vsvsr.training.recurrent import Chunk, RecurrentSettings, RecurrentTraining, continued, open_clips
from vsvsr.training.settings import Option


@dataclass(frozen=True, kw_only=True)
class Settings(RecurrentSettings):
    """Settings of this recipe."""

    steps: int = 70_000
    learning_rate: float = 5e-5
    final_rate: float = 1.0
    start: Annotated[Path, Option("weights of stage 1")]
    vgg: Annotated[Path | None, Option("torchvision's vgg19 file, for the perceptual loss; left out without")] = None
    pixel: Annotated[float, Option("weight of the L1 loss")] = 1.0
    perceptual: Annotated[float, Option("weight of the perceptual loss")] = 1.0
    gan: Annotated[float, Option("weight of the adversarial loss")] = 0.05
    discriminator_rate: Annotated[float, Option("learning rate of the discriminator, constant")] = 1e-4
    discriminator_channels: Annotated[int, Option("width of the discriminator")] = 64


class Losses:
    """L1, perceptual, and how surely the discriminator takes the pictures for made ones."""

    def __init__(self, settings: Settings, adversary: Adversary, processes: Processes) -> None:
        self._settings, self._adversary, self._device = settings, adversary, processes.device
        self._perceptual = None if settings.vgg is None else Perceptual(settings.vgg).to(processes.device)

    def __call__(self, chunk: Chunk) -> dict[str, Tensor]:
        settings = self._settings
        losses = {"pixel": settings.pixel * F.l1_loss(chunk.pictures, chunk.truth)}
        if self._perceptual is not None:
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=settings.bf16):
                distance = self._perceptual(chunk.pictures.flatten(0, 1), chunk.truth.flatten(0, 1))
            losses["perceptual"] = settings.perceptual * distance.float()
        losses["gan"] = settings.gan * self._adversary.loss(chunk.pictures)
        return losses


def recipe(
    network: FastRealVSR, settings: Settings, *, training: Crops, validation: Clips, processes: Processes
) -> RecurrentTraining:
    """The parts of this recipe for a network and its data, put together."""
    adversary = Adversary(
        settings.discriminator_channels,
        learning_rate=settings.discriminator_rate,
        processes=processes,
        bf16=settings.bf16,
    )
    return RecurrentTraining(
        network,
        settings,
        Losses(settings, adversary, processes),
        opponent=adversary,
        training=training,
        validation=validation,
        processes=processes,
        best_by=None,
    )


def run(settings: Settings) -> None:
    """Train."""
    processes = Processes.launched()
    torch.manual_seed(settings.seed)
    # The network of stage 1 may have no attention; this stage is what it is for.
    plain = load(settings.start).network.config.hsa == "none"
    network = continued(settings.start, hsa=settings.hsa or ("full" if plain else None)).to(processes.device)
    check_crop(settings.crop, network.scale)
    if settings.vgg is None and processes.main:
        print("no --vgg FILE: training without the perceptual loss")
    training, validation = open_clips(network, settings, processes)
    adversarial = recipe(network, settings, training=training, validation=validation, processes=processes)
    train(adversarial, settings, steps=settings.steps, processes=processes)
