"""The two architectures of Real-ESRGAN (Wang et al., ICCVW 2021), four times the size.

Both map RGB in [0, 1] ``(n, 3, h, w)`` to ``(n, 3, 4 h, 4 w)``, not clamped. Layers are named as published.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsvsr.errors import UserError
from vsvsr.models.common import PlainConvolutions

SCALE = 4


class SRVGG(nn.Module):
    """A chain of 3x3 convolutions with PReLU at low resolution, added to the nearest-neighbour enlargement.

    Args:
        channels: width.
        convolutions: hidden ones, the first included; animevideov3 has 17.
    """

    def __init__(self, channels: int = 64, convolutions: int = 17) -> None:
        super().__init__()
        chain = PlainConvolutions(3, channels, convolutions)
        self.body = nn.Sequential(*chain, nn.Conv2d(channels, 3 * SCALE**2, 3, padding=1))

    def forward(self, frame: Tensor) -> Tensor:
        """See the module."""
        picture = F.pixel_shuffle(self.body(frame), SCALE)
        return picture + F.interpolate(frame, scale_factor=SCALE, mode="nearest")


class _DenseBlock(nn.Module):
    """Five convolutions, each of which sees the results of all before it; the input plus 0.2 times the last one."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        for i in range(5):
            outputs = growth if i < 4 else channels
            self.add_module(f"conv{i + 1}", nn.Conv2d(channels + i * growth, outputs, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for conv in self.children():
            features.append(conv(torch.cat(features, dim=1)))
            if len(features) <= 5:
                features[-1] = F.leaky_relu(features[-1], 0.2)
        return x + 0.2 * features[-1]


class _RRDB(nn.Module):
    """Three dense blocks; the input plus 0.2 times their result."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = _DenseBlock(channels, growth)
        self.rdb2 = _DenseBlock(channels, growth)
        self.rdb3 = _DenseBlock(channels, growth)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))  # type: ignore[no-any-return]


class RRDBNet(nn.Module):
    """Residual-in-residual dense blocks at low resolution, then nearest-neighbour enlargement with convolutions.

    Args:
        channels: width.
        blocks: residual-in-residual blocks; x4plus has 23.
        growth: channels that each convolution of a dense block adds.
    """

    def __init__(self, channels: int = 64, blocks: int = 23, growth: int = 32) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(*(_RRDB(channels, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_up1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_up2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_hr = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_last = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, frame: Tensor) -> Tensor:
        """See the module."""
        x = self.conv_first(frame)
        x = x + self.conv_body(self.body(x))
        for conv in (self.conv_up1, self.conv_up2):
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))  # type: ignore[no-any-return]


type PerFrameNetwork = SRVGG | RRDBNet

_CREATE: dict[str, Callable[[], PerFrameNetwork]] = {"realesrgan-x4plus": RRDBNet, "realesr-animevideov3": SRVGG}


def create(name: str) -> PerFrameNetwork:
    """A published network by name, with random weights.

    Raises:
        UserError: the name is unknown.
    """
    if name not in _CREATE:
        raise UserError(f"{name!r} is no network of Real-ESRGAN; known are {' and '.join(_CREATE)}")
    return _CREATE[name]()
