"""Hidden state attention: the pool of filtered states and what chooses among them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsvsr.models.fastreal.config import FastRealConfig
from vsvsr.ops import convolve, hidden_state_attention
from vsvsr.ops.hidden_state_attention import attention_weights, filter_depthwise, member_filters

_SIZE = 5


def _blur_kernel(name: str) -> Tensor:
    """One of `BLURS` as a 5x5 kernel that sums to 1, smaller ones padded with zeros."""
    if name == "mean3":
        return F.pad(torch.full((3, 3), 1 / 9), (1, 1, 1, 1))
    if name == "mean5":
        return torch.full((_SIZE, _SIZE), 1 / 25)
    line = torch.exp(-((torch.arange(_SIZE, dtype=torch.float32) - _SIZE // 2) ** 2) / (2 * 1.5**2))
    kernel = line[:, None] * line
    return kernel / kernel.sum()


def _pool_filters(members: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Blur kernels ``(filters, 5, 5)`` and the mix ``(members, 1 + filters)`` that makes the members of them."""
    blurs = list(dict.fromkeys(name.removeprefix("sharp_") for name in members))
    mix = torch.zeros(len(members), 1 + len(blurs))
    for row, name in zip(mix, members, strict=True):
        sharp = name.startswith("sharp_")
        row[0] = 2.0 if sharp else 0.0
        row[1 + blurs.index(name.removeprefix("sharp_"))] = -1.0 if sharp else 1.0
    return torch.stack([_blur_kernel(name) for name in blurs]), mix


class HiddenStatePool(nn.Module):
    """The filters of the pool; buffers only."""

    kernels: Tensor
    mix: Tensor
    filters: Tensor

    def __init__(self, members: tuple[str, ...]) -> None:
        super().__init__()
        kernels, mix = _pool_filters(members)
        self.register_buffer("kernels", kernels)
        self.register_buffer("mix", mix, persistent=False)
        self.register_buffer("filters", member_filters(kernels, mix), persistent=False)
        self.register_load_state_dict_post_hook(_combine)  # type: ignore[no-untyped-call]

    def members(self, hidden: Tensor) -> list[Tensor]:
        """Every member of the pool for a state ``(n, c, h, w)``."""
        copies = torch.stack(filter_depthwise(hidden, self.kernels))
        return list(torch.einsum("ij,jnchw->inchw", self.mix.to(hidden.dtype), copies))


def _combine(pool: nn.Module, missing: object) -> None:
    """Kernels were loaded: their mix is made once, not in every step."""
    assert isinstance(pool, HiddenStatePool)
    pool.filters = member_filters(pool.kernels, pool.mix)


class SelectiveCrossAttention(HiddenStatePool):
    """Eq. 8: per pixel, softmax over the pool members under the guidance of the current frame's features.

    Set ``probe`` to a member's index to give all members that member's place (the paper's study of single filters).
    """

    def __init__(self, config: FastRealConfig) -> None:
        super().__init__(config.members)
        channels = config.channels
        self.fast = config.fast_sca
        self.probe: int | None = None
        self.q = nn.Conv2d(channels, config.key_channels, 3, padding=1)
        self.k = nn.Conv2d(channels, config.key_channels, 3, padding=1)
        self.v = nn.Conv2d(channels, channels, 3, padding=1)
        # The pool replaces the state abruptly: begin with equal weights and values that are the members themselves.
        for conv in (self.q, self.k):
            nn.init.normal_(conv.weight, std=0.01)
        nn.init.dirac_(self.v.weight)
        for conv in (self.q, self.k, self.v):
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # created with a bias above

    def forward(self, hidden: Tensor, features: Tensor) -> Tensor:
        """Warped state and features of the current frame, both ``(n, c, h, w)``: the state to fuse, the same shape."""
        if self.fast:
            query, key, value = convolve(features, self.q), convolve(hidden, self.k), convolve(hidden, self.v)
            mix, filters = self._selected(self.mix), self._selected(self.filters)
            return hidden_state_attention(query, key, value, self.kernels, mix, filters)
        members = self._selected_members(hidden)
        weights = self._reference_weights(members, features).to(hidden.dtype)
        values = torch.stack([self.v(member) for member in members], dim=1)
        return (weights[:, :, None] * values).sum(1)

    def weights(self, hidden: Tensor, features: Tensor) -> Tensor:
        """The attention weights ``(n, members, h, w)``, for study; they sum to 1 over the members."""
        if self.fast:
            return attention_weights(self.q(features), filter_depthwise(self.k(hidden), self.kernels), self.mix)
        return self._reference_weights(self._selected_members(hidden), features)

    def _reference_weights(self, members: list[Tensor], features: Tensor) -> Tensor:
        keys = [self.k(member) for member in members]
        return attention_weights(self.q(features), keys, torch.eye(len(keys), device=features.device))

    def _selected_members(self, hidden: Tensor) -> list[Tensor]:
        members = self.members(hidden)
        return members if self.probe is None else [members[self.probe]] * len(members)

    def _selected(self, members: Tensor) -> Tensor:
        return members if self.probe is None else members[self.probe].expand_as(members)


class PoolConvolution(HiddenStatePool):
    """The paper's "without SCA": one convolution over the concatenated pool."""

    def __init__(self, config: FastRealConfig) -> None:
        super().__init__(config.members)
        self.conv = nn.Conv2d(len(config.members) * config.channels, config.channels, 3, padding=1)

    def forward(self, hidden: Tensor, features: Tensor) -> Tensor:
        """Warped state ``(n, c, h, w)`` to the state to fuse; the features take no part."""
        return self.conv(torch.cat(self.members(hidden), dim=1))  # type: ignore[no-any-return]
