"""Gates: what turns the mask predictor's logits into the mask of a block (MIA-VSR, eq. 6 to 8)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

TEMPERATURE = 2 / 3
"""Of the sigmoid; part of the released networks."""


class MaskSite(NamedTuple):
    """Where a mask is used.

    Attributes:
        module: propagation module, for example ``backward_1``.
        step: frames that the module has seen before this one; masks begin at 1.
        block: index of the block in the module, counted through its stages.
    """

    module: str
    step: int
    block: int


Gate = Callable[[MaskSite, Tensor], Tensor]
"""Logits ``(n, h, w)`` in fp32 to a mask of the same shape: bool, or float 0 and 1 that carries a gradient.

True (1) computes the position anew, False (0) repeats what the block did there one step before."""


def threshold_gate(site: MaskSite, logits: Tensor) -> Tensor:
    """The released networks' decision: ``sigmoid(logit / temperature) >= 0.5``."""
    return torch.sigmoid(logits / TEMPERATURE) >= 0.5


def refreshing_gate(every: int) -> Gate:
    """`threshold_gate`, but every ``every``-th step of a pass computes all positions, which ends slow drift."""

    def gate(site: MaskSite, logits: Tensor) -> Tensor:
        if site.step % every == 0:
            return torch.ones_like(logits, dtype=torch.bool)
        return threshold_gate(site, logits)

    return gate


class KeepRatios:
    """A gate that notes what share of the positions another gate keeps.

    Attributes:
        ratios: share of kept positions in [0, 1] by site, of the calls since the object was made.
    """

    def __init__(self, gate: Gate = threshold_gate) -> None:
        self.ratios: dict[MaskSite, float] = {}
        self._gate = gate

    def __call__(self, site: MaskSite, logits: Tensor) -> Tensor:
        mask = self._gate(site, logits)
        self.ratios[site] = float(mask.float().mean())
        return mask
