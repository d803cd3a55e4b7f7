"""Recurrent temporal shift (RTS), the temporal part of UltraVSR, in the layout of the released checkpoint.

A unit mixes each frame with the one before and the one after, so a module (two units) reaches two frames to each
side. Both units are split in two calls: ``reduce`` sees one frame, ``combine`` sees a frame and the reduced features of
its neighbours. A stream can therefore run them with a window of three frames and gets the pixels of the whole clip.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

RTSForm = Literal["released", "paper"]
"""``released`` is the code of the published weights, ``paper`` what eq. 5 to 7 print.

The paper keeps the unshifted term in both units, has a ReLU for the SiLU, and attends among the pixels of a frame
(times ``1 / sqrt(r)`` for heads of ``r`` channels) where the code attends among channels, at a learnt temperature.
"""

HEADS = 8


class TemporalUnit(nn.Module, ABC):
    """A residual unit over frames ``(t, c, h, w)`` of one clip that reaches one frame to each side."""

    checkpointing = False
    """Whether training recomputes activations in the backward pass instead of keeping them."""

    def __init__(self, form: RTSForm) -> None:
        super().__init__()
        self.form = form

    @abstractmethod
    def reduce(self, x: Tensor) -> Tensor:
        """What neighbours need of a frame: ``(t, c, h, w)`` to ``(t, r, h, w)``, with ``r`` much less than ``c``."""

    @abstractmethod
    def combine(self, x: Tensor, before: Tensor, current: Tensor, after: Tensor) -> Tensor:
        """Frames ``(t, c, h, w)`` and the reduced features at -1, 0 and +1, each ``(t, r, h, w)``, to ``(t, c, h, w)``.

        Beyond the ends of the clip the reduced features are zero.
        """

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._mix, x, use_reentrant=False)
        return self._mix(x)

    def _mix(self, x: Tensor) -> Tensor:
        current = self.reduce(x)
        end = torch.zeros_like(current[:1])
        return self.combine(x, torch.cat((end, current[:-1])), current, torch.cat((current[1:], end)))


class RTSConv(TemporalUnit):
    """``x + conv3(silu(conv_blocks(shift(conv1(x)))))``.

    The shift takes the first third of the reduced channels from the frame before and the last third from the frame
    after; the middle third is zero in the released form.
    """

    def __init__(self, channels: int, reduced: int, form: RTSForm) -> None:
        super().__init__(form)
        self.conv1 = nn.Conv2d(channels, reduced, 1, bias=False)
        activation = nn.SiLU() if form == "released" else nn.ReLU()
        self.conv_blocks = nn.Sequential(nn.Conv2d(reduced, reduced, 3, padding=1), activation)
        self.conv3 = nn.Conv2d(reduced, channels, 1, bias=False)
        nn.init.zeros_(self.conv3.weight)

    def reduce(self, x: Tensor) -> Tensor:
        return self.conv1(x)  # type: ignore[no-any-return]

    def combine(self, x: Tensor, before: Tensor, current: Tensor, after: Tensor) -> Tensor:
        return x + self.conv3(self.conv_blocks(self.shift(before, current, after)))  # type: ignore[no-any-return]

    def shift(self, before: Tensor, current: Tensor, after: Tensor) -> Tensor:
        """The shifted features, ``(t, reduced, h, w)``."""
        middle = current.chunk(3, dim=1)[1]
        if self.form == "released":
            middle = torch.zeros_like(middle)
        return torch.cat((before.chunk(3, dim=1)[0], middle, after.chunk(3, dim=1)[2]), dim=1)


class RTSAttention(TemporalUnit):
    """``x + project_out(sum_j softmax(temperature * q_t k_{t+j}^T) v_{t+j})`` with attention among channels.

    ``q`` and ``k`` are L2-normalised along the pixels of a frame, so that a head of ``c`` channels needs a ``c x c``
    matrix (as in Restormer). ``j`` runs over -1 and +1.

    In the paper's form it is ``softmax(q_t k_{t+j}^T / sqrt(r)) v_{t+j}`` among the pixels, and ``j`` 0 as well: for
    ``h w`` pixels the weights of a head are ``(h w)^2``, so it is for small planes.
    """

    def __init__(self, channels: int, reduced: int, form: RTSForm) -> None:
        super().__init__(form)
        if form == "released":
            self.temperature = nn.Parameter(torch.ones(HEADS, 1, 1))
        self.qkv = nn.Conv2d(channels, reduced, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(reduced, reduced, 3, padding=1, groups=reduced)
        self.project_out = nn.Conv2d(reduced // 3, channels, 1, bias=False)
        nn.init.zeros_(self.project_out.weight)

    def reduce(self, x: Tensor) -> Tensor:
        return self.qkv_dwconv(self.qkv(x))  # type: ignore[no-any-return]

    def combine(self, x: Tensor, before: Tensor, current: Tensor, after: Tensor) -> Tensor:
        query = current.chunk(3, dim=1)[0]
        mixed = self._attend(query, before) + self._attend(query, after)
        if self.form == "paper":
            mixed = mixed + self._attend(query, current)
        return x + self.project_out(mixed)  # type: ignore[no-any-return]

    def _attend(self, query: Tensor, other: Tensor) -> Tensor:
        """Attention of ``(t, r / 3, h, w)`` on the keys and values of ``(t, r, h, w)``."""
        _, key, value = other.chunk(3, dim=1)
        width = query.shape[-1]
        if self.form == "paper":
            q, k, v = (rearrange(x, "t (heads c) h w -> t heads (h w) c", heads=HEADS) for x in (query, key, value))
            mixed = F.scaled_dot_product_attention(q, k, v)
            return rearrange(mixed, "t heads (h w) c -> t (heads c) h w", w=width)
        q, k, v = (rearrange(x, "t (heads c) h w -> t heads c (h w)", heads=HEADS) for x in (query, key, value))
        # The squares of 57,600 pixels leave the range of fp16, and a flat channel needs the small eps.
        q, k = (F.normalize(tensor.float(), dim=-1, eps=1e-12) for tensor in (q, k))
        weights = (self.temperature.float() * (q @ k.transpose(-2, -1))).softmax(dim=-1)
        return rearrange(weights.to(v.dtype) @ v, "t heads c (h w) -> t (heads c) h w", w=width)


class RTSModule(nn.Module):
    """Convolution unit, then attention unit; the identity until weights are loaded or trained.

    Frames of one clip ``(t, channels, h, w)`` to the same shape.

    Args:
        channels: of the features.
        conv_channels: reduced channels of the convolution unit, a multiple of 3; None for ``3 * (channels // 30)``.
        attention_channels: query, key and value together, a multiple of 24; None for ``24 * (channels // 96)``.
        form: see :data:`RTSForm`.
    """

    def __init__(
        self,
        channels: int,
        *,
        conv_channels: int | None = None,
        attention_channels: int | None = None,
        form: RTSForm = "released",
    ) -> None:
        super().__init__()
        convolved, attended = conv_channels or 3 * (channels // 30), attention_channels or 24 * (channels // 96)
        if not convolved or convolved % 3 or not attended or attended % 24:
            raise ValueError(
                f"temporal shift of {channels} channels by way of {convolved} and {attended}: these must be positive "
                "multiples of 3 and 24"
            )
        self.RTSConv = RTSConv(channels, convolved, form)
        self.RTSAtten = RTSAttention(channels, attended, form)

    @property
    def units(self) -> tuple[TemporalUnit, TemporalUnit]:
        return self.RTSConv, self.RTSAtten

    def forward(self, x: Tensor) -> Tensor:
        return self.RTSAtten(self.RTSConv(x))  # type: ignore[no-any-return]
