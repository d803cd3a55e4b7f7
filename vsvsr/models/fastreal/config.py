"""What a FastRealVSR network is made of."""

from dataclasses import dataclass, replace
from typing import Literal

Variant = Literal["none", "full", "blurry", "sharp", "conv"]

BLURS = ("mean3", "mean5", "gauss5")
"""Averages over 3x3 and 5x5 pixels, and a Gaussian of 5x5 pixels."""
FILTERS = (*BLURS, *(f"sharp_{name}" for name in BLURS))
"""What a pool may consist of: blurs, and unsharp masks ``2x - blur(x)``."""
POOL = ("mean3", "mean5", "gauss5", "sharp_mean3", "sharp_gauss5")
"""The members of the paper's pool: three blurs, and the unsharp masks of two of them."""


@dataclass(frozen=True, kw_only=True)
class FastRealConfig:
    """Defaults are the full-size network of the paper (3,807,151 parameters).

    Attributes:
        channels: width of the trunk and of the hidden state.
        trunk: ``residual`` blocks, or the ``plain`` 3x3 convolutions with PReLU of the fast per-frame networks.
        rb1_blocks: residual blocks, or plain convolutions, of the per-frame feature extractor.
        rb2_blocks: residual blocks, or plain convolutions, from the fusion with the hidden state on.
        head: ``two_step`` is the pixel-shuffle head of BasicVSR, ``single`` one convolution and one pixel shuffle.
        base: interpolation of the frame to which the network adds.
        scale: 2 or 4.
        hsa: what happens to the warped state: nothing, attention over the whole pool, over its blurs, over its sharp
            members, or one convolution over the concatenated pool.
        pool: members of the pool by name: ``mean3``, ``mean5``, ``gauss5`` and ``sharp_`` followed by one of them.
        fast_sca: convolve the state once and filter the results, instead of convolving every member.
        key_channels: width of the attention's query and key.
        flow: SPyNet, or `LightFlow`, a thirtieth of its cost.
    """

    channels: int = 64
    trunk: Literal["residual", "plain"] = "residual"
    rb1_blocks: int = 5
    rb2_blocks: int = 20
    head: Literal["two_step", "single"] = "two_step"
    base: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    scale: Literal[2, 4] = 4
    hsa: Variant = "full"
    pool: tuple[str, ...] = POOL
    fast_sca: bool = False
    key_channels: int = 64
    flow: Literal["spynet", "light"] = "spynet"

    def __post_init__(self) -> None:
        if len(set(self.pool)) < len(self.pool) or not set(self.pool) <= set(FILTERS):
            raise ValueError(f"pool may hold {', '.join(FILTERS)}, each once; it is {self.pool}")

    @property
    def members(self) -> tuple[str, ...]:
        """Pool members that take part in this variant."""
        if self.hsa == "blurry":
            return tuple(name for name in self.pool if not name.startswith("sharp_"))
        if self.hsa == "sharp":
            return tuple(name for name in self.pool if name.startswith("sharp_"))
        return self.pool


@dataclass(frozen=True, kw_only=True)
class Restarts:
    """How often the recurrence of trained weights restarts: a consequence of how fast they forget.

    Attributes:
        segment: frames between two restarts.
        warmup: frames before a segment on which the state is warmed up, at most ``segment``.
    """

    segment: int = 240
    warmup: int = 15

    def __post_init__(self) -> None:
        if self.warmup > self.segment:
            raise ValueError(f"a warm-up of {self.warmup} frames is longer than a segment of {self.segment}")


COMPACT = FastRealConfig(
    channels=32,
    rb1_blocks=1,
    rb2_blocks=4,
    head="single",
    base="bicubic",
    fast_sca=True,
    key_channels=16,
    flow="light",
)
"""The size that runs at a third of the time of a per-frame network of 16 convolutions with 64 channels."""

PLAIN = replace(COMPACT, channels=64, trunk="plain", rb1_blocks=4, rb2_blocks=13, base="nearest")
"""The size of a published fast per-frame network, Real-ESRGAN's animevideov3, plus a hidden state."""
