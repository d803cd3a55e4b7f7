"""Stage 2: pixel, perceptual and adversarial loss, for pictures that look sharp rather than measure well."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr.models.fastreal import FastRealVSR
from vsvsr.training.data.clips import Dataset
from vsvsr.training.discriminator import UNetDiscriminator
from vsvsr.training.losses import Perceptual
from vsvsr.training.recipes.fastreal import TrainConfig, Trainer


@dataclass(frozen=True, kw_only=True)
class SharpConfig:
    """What stage 2 has beside the settings of every training.

    Attributes:
        pixel: weight of the L1 loss.
        perceptual: weight of the perceptual loss.
        gan: weight of the adversarial loss.
        discriminator_rate: its learning rate, constant.
        discriminator_channels: its width.
    """

    pixel: float = 1.0
    perceptual: float = 1.0
    gan: float = 0.05
    discriminator_rate: float = 1e-4
    discriminator_channels: int = 64


class SharpTrainer(Trainer):
    """Trains a network that stage 1 has trained against a U-Net discriminator (vanilla GAN loss on every frame).

    PSNR falls in this stage: the last weights are exported, and the sample pictures tell which are best.

    Args:
        network: trained in place.
        config: settings of every training.
        sharp: settings of this one.
        vgg: torchvision's VGG19 weights for the perceptual loss; None leaves it out.
        training: crops to learn from, of a multiple of 8 pixels after enlargement.
        validation: whole clips.
        folder: of checkpoints, exports, the log and sample pictures.
        metadata: goes into every exported file.
    """

    _best_by_psnr: ClassVar[bool] = False

    def __init__(
        self,
        network: FastRealVSR,
        config: TrainConfig,
        sharp: SharpConfig,
        *,
        vgg: Path | None,
        training: Dataset,
        validation: Dataset,
        folder: Path,
        metadata: dict[str, str],
    ) -> None:
        super().__init__(network, config, training=training, validation=validation, folder=folder, metadata=metadata)
        self.sharp = sharp
        self.perceptual = None if vgg is None else Perceptual(vgg).to(self.device)
        self.critic = UNetDiscriminator(sharp.discriminator_channels).to(self.device)
        self.critic.to(memory_format=torch.channels_last)
        self.critic_optimiser = torch.optim.Adam(
            self.critic.parameters(), lr=sharp.discriminator_rate, betas=(0.9, 0.99)
        )

    def _losses(self, pictures: Tensor, truth: Tensor, flows: Tensor) -> dict[str, Tensor]:
        """L1, perceptual, and how surely the critic takes the pictures for made ones."""
        made, real = pictures.flatten(0, 1), truth.flatten(0, 1)
        losses = {"pixel": self.sharp.pixel * F.l1_loss(made, real)}
        if self.perceptual is not None:
            with self._precision():
                losses["perceptual"] = self.sharp.perceptual * self.perceptual(made, real).float()
        self.critic.requires_grad_(False)
        losses["gan"] = self.sharp.gan * self._judge(made, real=True)
        self.critic.requires_grad_(True)
        return losses

    def _train_critic(self, pictures: Tensor, truth: Tensor) -> dict[str, float]:
        loss = self._judge(truth.flatten(0, 1), real=True) + self._judge(pictures.flatten(0, 1), real=False)
        self._backward(self.critic_optimiser, loss)
        self.critic_optimiser.step()
        return {"discriminator": float(loss.detach())}

    def _judge(self, pictures: Tensor, *, real: bool) -> Tensor:
        """Binary cross entropy of the critic's logits for pictures that it should take for real, or not."""
        with self._precision():
            logits = self.critic(pictures.contiguous(memory_format=torch.channels_last)).float()
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

    def _state(self) -> dict[str, Any]:
        critic = {"critic": self.critic.state_dict(), "critic_optimiser": self.critic_optimiser.state_dict()}
        return {**super()._state(), **critic}

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self.critic.load_state_dict(state["critic"])
        self.critic_optimiser.load_state_dict(state["critic_optimiser"])
