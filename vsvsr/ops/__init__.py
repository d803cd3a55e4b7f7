"""Hot operations. Each has a plain PyTorch form that defines the result."""

from vsvsr.ops.block_skip import BlockWeights, SkipGrid, Tiles, block_skip_reference
from vsvsr.ops.convolution import conv2d, convolve, pin_convolutions
from vsvsr.ops.flow_correction import flow_correction
from vsvsr.ops.flow_warp import flow_warp
from vsvsr.ops.grey_pyramid import grey_pyramid
from vsvsr.ops.hidden_state_attention import hidden_state_attention
from vsvsr.ops.lucas_kanade import lucas_kanade
from vsvsr.ops.masked_window_attention import masked_window_attention

__all__ = [
    "BlockWeights",
    "SkipGrid",
    "Tiles",
    "block_skip_reference",
    "conv2d",
    "convolve",
    "flow_correction",
    "flow_warp",
    "grey_pyramid",
    "hidden_state_attention",
    "lucas_kanade",
    "masked_window_attention",
    "pin_convolutions",
]
