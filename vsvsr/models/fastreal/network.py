"""FastRealVSR: a unidirectional recurrent network with hidden state attention."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsvsr.models.common import PlainConvolutions, ResidualBlocksWithInputConv, SPyNet
from vsvsr.models.fastreal.attention import HiddenStatePool, PoolConvolution, SelectiveCrossAttention
from vsvsr.models.fastreal.config import FastRealConfig
from vsvsr.models.fastreal.flow import LightFlow
from vsvsr.ops import conv2d, flow_warp

HEAD = ("upconv1.", "upconv2.", "conv_hr.", "conv_last.")
"""Beginnings of the names of the layers that make pictures of states; their shapes depend on the scale."""


class FastRealVSR(nn.Module):
    """Video super-resolution of "Mitigating Artifacts in Real-World Video Super-Resolution Models" (AAAI 2023).

    A step takes the frame, the frame before it and the hidden state; the new hidden state is all that the picture is
    made from (eq. 1 to 3)::

        f_s = RB1(x_t)
        h_hat = HSA(warp(h_{t-1}, flow(x_t, x_{t-1})), f_s)
        h_t = RB2(concat(h_hat, f_s))
        y_t = UP(h_t) + upsampled x_t

    Frames are RGB in [0, 1], ``(n, 3, h, w)``; states ``(n, channels, h, w)``. Results are not clamped.
    """

    base_weight: Tensor

    def __init__(self, config: FastRealConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FastRealConfig()
        channels = config.channels
        if config.flow == "spynet":
            self.spynet: nn.Module = SPyNet()
        else:
            self.light_flow: nn.Module = LightFlow()
        self.flow_estimator.requires_grad_(False)
        trunk = PlainConvolutions if config.trunk == "plain" else ResidualBlocksWithInputConv
        self.rb1: nn.Module = trunk(3, channels, config.rb1_blocks)
        self.rb2: nn.Module = trunk(2 * channels, channels, config.rb2_blocks)
        if config.hsa == "conv":
            self.hsa: nn.Module | None = PoolConvolution(config)
        else:
            self.hsa = None if config.hsa == "none" else SelectiveCrossAttention(config)
        if config.head == "two_step":
            self.upconv1 = nn.Conv2d(channels, (channels if config.scale == 4 else 64) * 4, 3, padding=1)
            self.upconv2 = nn.Conv2d(channels, 64 * 4, 3, padding=1) if config.scale == 4 else None
            self.conv_hr = nn.Conv2d(64, 64, 3, padding=1)
            self.conv_last = nn.Conv2d(64, 3, 3, padding=1)
        else:
            self.conv_last = nn.Conv2d(channels, 3 * config.scale**2, 3, padding=1)
            self.register_buffer("base_weight", _upsampling_weight(config.base, config.scale), persistent=False)

    @property
    def scale(self) -> int:
        """Output pixels per input pixel in each direction."""
        return self.config.scale

    @property
    def min_side(self) -> int:
        """Smallest height and width that `propagate` takes."""
        return 33 if self.config.flow == "spynet" else 8

    @property
    def flow_estimator(self) -> nn.Module:
        """The part that stays as it is in training."""
        return self.spynet if self.config.flow == "spynet" else self.light_flow

    def half(self) -> "FastRealVSR":
        """Everything in fp16 except the flow, whose coordinates lose whole pixels in fp16, and the filters of the pool,
        which would not sum to 1 any more and fade the state from frame to frame.
        """
        pool = self.hsa
        kept = (pool.kernels, pool.mix, pool.filters) if isinstance(pool, HiddenStatePool) else None
        super().half()
        self.flow_estimator.float()
        if isinstance(pool, HiddenStatePool) and kept is not None:
            pool.kernels, pool.mix, pool.filters = kept
        return self

    def flow(self, frame: Tensor, previous: Tensor) -> Tensor:
        """Where each pixel of ``frame`` lies in ``previous``: ``(n, 2, h, w)`` fp32, in pixels."""
        if self.config.flow == "spynet":
            frame, previous = frame.float(), previous.float()
        return self.flow_estimator(frame, previous)  # type: ignore[no-any-return]

    def propagate(self, frame: Tensor, previous: Tensor | None, hidden: Tensor | None) -> Tensor:
        """The next hidden state.

        Args:
            frame: the current frame, sides of at least `min_side`.
            previous: the frame before it; None for a cold start.
            hidden: the state after ``previous``; None for a cold start, which fuses zeros instead of a state.

        Returns:
            ``(n, channels, h, w)``.
        """
        features = self.rb1(frame)
        if previous is None or hidden is None:
            return self.fuse(features, None, None)
        return self.fuse(features, hidden, self.flow(frame, previous))

    def fuse(self, features: Tensor, hidden: Tensor | None, flow: Tensor | None) -> Tensor:
        """The part of a step that needs the state: warp, attention and RB2 on features of the current frame."""
        state = torch.zeros_like(features) if hidden is None or flow is None else self.carry(features, hidden, flow)
        return self.rb2(torch.cat((state, features), dim=1))  # type: ignore[no-any-return]

    def carry(self, features: Tensor, hidden: Tensor, flow: Tensor) -> Tensor:
        """The state, warped and filtered under the guidance of the current frame's features."""
        state = flow_warp(hidden, flow)
        return state if self.hsa is None else self.hsa(state, features)

    def reconstruct(self, hidden: Tensor, frame: Tensor) -> Tensor:
        """State and frame to the picture ``(n, 3, scale * h, scale * w)``."""
        if self.config.head == "single":
            return F.pixel_shuffle(self._subpixels(hidden, frame), self.scale)
        base = self._base(frame)
        return self._detail(hidden) + base

    def render(self, hidden: Tensor, frame: Tensor, planes: Sequence[Tensor]) -> None:
        """Write the picture of the first batch item into three planes; bit-equal to `reconstruct`.

        Args:
            hidden: state ``(n, channels, h, w)``.
            frame: frame ``(n, 3, h, w)``.
            planes: three 2-D tensors of any strides that receive the top left of the picture; one size, multiples of
                `scale`, at most ``(scale * h, scale * w)``.
        """
        scale = self.scale
        height, width = planes[0].shape
        if self.config.head == "single":
            picture = F.pixel_shuffle(self._subpixels(hidden[:1], frame[:1]), scale)[0]
            for plane, channel in zip(planes, picture, strict=True):
                plane.copy_(channel[:height, :width])
            return
        base = self._base(frame[:1])[0]
        for plane, detail, smooth in zip(planes, self._detail(hidden[:1])[0], base, strict=True):
            torch.add(detail[:height, :width], smooth[:height, :width], out=plane)

    def _base(self, frame: Tensor) -> Tensor:
        """What the network's detail is added to."""
        aligned = None if self.config.base == "nearest" else False
        return F.interpolate(frame, scale_factor=self.scale, mode=self.config.base, align_corners=aligned)

    def forward(self, clip: Tensor) -> Tensor:
        """A whole clip ``(n, t, 3, h, w)`` from a cold start: ``(n, t, 3, scale * h, scale * w)``."""
        hidden: Tensor | None = None
        previous: Tensor | None = None
        pictures = []
        for frame in clip.unbind(1):
            hidden = self.propagate(frame, previous, hidden)
            previous = frame
            pictures.append(self.reconstruct(hidden, frame))
        return torch.stack(pictures, dim=1)

    def _detail(self, hidden: Tensor) -> Tensor:
        """The two-step head without the upsampled frame."""
        x = F.leaky_relu(F.pixel_shuffle(self.upconv1(hidden), 2), 0.1)
        if self.upconv2 is not None:
            x = F.leaky_relu(F.pixel_shuffle(self.upconv2(x), 2), 0.1)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.1))  # type: ignore[no-any-return]

    def _subpixels(self, hidden: Tensor, frame: Tensor) -> Tensor:
        """The single head before its pixel shuffle, the upsampled frame included as a convolution at LR size."""
        base = conv2d(F.pad(frame, (2, 2, 2, 2), mode="replicate"), self.base_weight)
        return self.conv_last(hidden).add_(base)  # type: ignore[no-any-return]


def _upsampling_weight(base: str, scale: int) -> Tensor:
    """``F.interpolate(mode=base)`` as a convolution ``(3 * scale ** 2, 3, 5, 5)`` before a pixel shuffle."""
    offsets = (torch.arange(scale, dtype=torch.float32) + 0.5) / scale - 0.5
    distance = (offsets[:, None] - torch.arange(-2, 3)).abs()
    if base == "nearest":
        taps = (distance < 0.5).float()
    elif base == "bilinear":
        taps = (1 - distance).clamp(min=0)
    else:
        near = 1.25 * distance**3 - 2.25 * distance**2 + 1
        far = -0.75 * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        taps = torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
    kernels = torch.einsum("ay,bx->abyx", taps, taps).reshape(scale**2, 5, 5)
    weight = torch.zeros(3, scale**2, 3, 5, 5)
    for colour in range(3):
        weight[colour, :, colour] = kernels
    return weight.reshape(3 * scale**2, 3, 5, 5)
