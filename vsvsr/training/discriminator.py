"""The critic of stage 2."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


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
