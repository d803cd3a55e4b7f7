"""Parts that several networks share."""

from vsvsr.models.common.blocks import PlainConvolutions, ResidualBlock, ResidualBlocksWithInputConv
from vsvsr.models.common.spynet import SPyNet
from vsvsr.models.common.upsampler import PixelShuffleHead, Write

__all__ = [
    "PixelShuffleHead",
    "PlainConvolutions",
    "ResidualBlock",
    "ResidualBlocksWithInputConv",
    "SPyNet",
    "Write",
]
