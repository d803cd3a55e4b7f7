"""The pixel-shuffle head of BasicVSR and its descendants."""

import torch.nn.functional as F
from torch import Tensor, nn


class PixelShuffleHead(nn.Module):
    """Base of networks that reconstruct x4 with two pixel shuffles; its layers lie at the top of the state dict.

    One output pixel depends on features at most 2 LR pixels away, so a halo of 2 makes tiled reconstruction exact.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.upconv1 = nn.Conv2d(channels, channels * 4, 3, padding=1)
        self.upconv2 = nn.Conv2d(channels, 64 * 4, 3, padding=1)
        self.conv_hr = nn.Conv2d(64, 64, 3, padding=1)
        self.conv_last = nn.Conv2d(64, 3, 3, padding=1)

    def reconstruct(self, features: Tensor, frames: Tensor) -> Tensor:
        """Features ``(n, channels, h, w)``, LR frames ``(n, 3, h, w)``: HR frames ``(n, 3, 4h, 4w)``, not clamped."""
        x = F.leaky_relu(F.pixel_shuffle(self.upconv1(features), 2), 0.1)
        x = F.leaky_relu(F.pixel_shuffle(self.upconv2(x), 2), 0.1)
        x = self.conv_last(F.leaky_relu(self.conv_hr(x), 0.1))
        base = F.interpolate(frames, scale_factor=4, mode="bilinear", align_corners=False)
        return x + base  # type: ignore[no-any-return]
