"""Residual blocks without normalisation, keyed as in BasicSR's checkpoints."""

import itertools

from torch import Tensor, nn

from vsvsr.ops import convolve


class ResidualBlock(nn.Module):
    """``x + conv2(relu(conv1(x)))`` with 3x3 convolutions on ``(n, channels, h, w)``.

    Convolutions start as Kaiming normal times 0.1 with zero bias, so that deep stacks begin near the identity.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight)
            conv.weight.data.mul_(0.1)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # created with a bias above

    def forward(self, x: Tensor) -> Tensor:
        return convolve(convolve(x, self.conv1, slope=0.0), self.conv2, residual=x)


class ResidualBlocksWithInputConv(nn.Module):
    """3x3 convolution, LeakyReLU 0.1, then ``blocks`` residual blocks.

    ``(n, in_channels, h, w)`` to ``(n, channels, h, w)``.
    """

    def __init__(self, in_channels: int, channels: int = 64, blocks: int = 30) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks))),
        )

    def forward(self, x: Tensor) -> Tensor:
        head, _, blocks = self.main
        assert isinstance(head, nn.Conv2d)
        return blocks(convolve(x, head, slope=0.1))  # type: ignore[no-any-return]


class PlainConvolutions(nn.Sequential):
    """3x3 convolutions, each followed by a PReLU with a slope per channel.

    Maps ``(n, in_channels, h, w)`` to ``(n, out_channels, h, w)``; names as in Real-ESRGAN's fast networks: ``0``,
    ``2``, ... convolutions, ``1``, ``3``, ... activations.
    """

    def __init__(self, in_channels: int, out_channels: int, convolutions: int) -> None:
        inputs = itertools.chain((in_channels,), itertools.repeat(out_channels, convolutions - 1))
        layers = ((nn.Conv2d(n, out_channels, 3, padding=1), nn.PReLU(out_channels)) for n in inputs)
        super().__init__(*(layer for pair in layers for layer in pair))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as in torch
        layers = list(self)
        for conv, activation in zip(layers[::2], layers[1::2], strict=True):
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(activation, nn.PReLU)
            input = convolve(input, conv, slope=activation.weight)  # noqa: A001
        return input
