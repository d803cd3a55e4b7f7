"""The discriminator of adversarial recipes, and its training."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from vsvsr.errors import UserError
from vsvsr.training.harness import Optimiser, Processes, Stateful
from vsvsr.training.recurrent import Chunk


class UNetDiscriminator(nn.Module):
    """U-Net with spectral norm and added skip connections; a judgement of each pixel from its surroundings.

    RGB ``(n, 3, h, w)`` in [0, 1], sides multiples of 8, to logits ``(n, 1, h, w)``; high means real.

    Args:
        channels: width at full size; it doubles with each of three reductions.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, *, stride: int = 1) -> nn.Module:
            kernel = 4 if stride == 2 else 3
            return spectral_norm(nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=1, bias=False))

        c = channels
        self.conv0 = nn.Conv2d(3, c, 3, padding=1)
        self.down = nn.ModuleList(conv(c << level, c << level + 1, stride=2) for level in range(3))
        self.up = nn.ModuleList(conv(c << level, c << level - 1) for level in (3, 2, 1))
        self.conv7, self.conv8 = conv(c, c), conv(c, c)
        self.conv9 = nn.Conv2d(c, 1, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        skips = [F.leaky_relu(self.conv0(pictures), 0.2)]
        for layer in self.down:
            skips.append(F.leaky_relu(layer(skips[-1]), 0.2))
        x = skips.pop()
        for layer in self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = F.leaky_relu(layer(x), 0.2) + skips.pop()
        for layer in (self.conv7, self.conv8):
            x = F.leaky_relu(layer(x), 0.2)
        return self.conv9(x)  # type: ignore[no-any-return]


def check_crop(crop: int, scale: int) -> None:
    """Raise a UserError where pictures of low-resolution crops have no sides that can be halved three times."""
    if crop * scale % 8:
        raise UserError(f"--crop {crop} is not possible; allowed with a discriminator: multiples of {8 // scale}")


class Adversary:
    """A U-Net discriminator that is trained beside a network: vanilla GAN loss on every frame.

    Args:
        channels: width of the discriminator.
        learning_rate: its own, constant.
        processes: share the gradients.
        bf16: mixed precision.
    """

    def __init__(self, channels: int, *, learning_rate: float, processes: Processes, bf16: bool = False) -> None:
        self.discriminator = UNetDiscriminator(channels).to(processes.device).to(memory_format=torch.channels_last)
        self._optimiser = Optimiser(self.discriminator.parameters(), learning_rate=learning_rate, processes=processes)
        self._device, self._bf16 = processes.device, bf16

    def loss(self, pictures: Tensor) -> Tensor:
        """How surely the discriminator takes pictures ``(n, t, 3, h, w)`` for made ones; no gradient reaches it."""
        self.discriminator.requires_grad_(False)
        loss = self._judge(pictures, real=True)
        self.discriminator.requires_grad_(True)
        return loss

    def train(self, chunk: Chunk) -> dict[str, float]:
        """One update: the truth is real, the pictures are not."""
        loss = self._judge(chunk.truth, real=True) + self._judge(chunk.pictures, real=False)
        self._optimiser.step(loss)
        return {"discriminator": float(loss.detach())}

    def _judge(self, pictures: Tensor, *, real: bool) -> Tensor:
        """Binary cross entropy of the logits for pictures that should be taken for real, or not."""
        flat = pictures.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            logits = self.discriminator(flat).float()
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

    @property
    def parts(self) -> dict[str, Stateful]:
        return {"discriminator": self.discriminator, "discriminator optimiser": self._optimiser}
