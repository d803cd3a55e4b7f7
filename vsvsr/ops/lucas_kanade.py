"""Steps of least-squares motion."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr.ops.dispatch import runs_kernels
from vsvsr.ops.flow_warp import flow_warp_reference

_WINDOW = 5
_NOISE = 3e-4
"""Regularises the motion where the picture is flat: the squared gradient that noise and compression make."""
_LIMIT = 1.5
"""Pixels of a step in each direction."""


@torch.library.custom_op("vsvsr::lucas_kanade", mutates_args=())
def fused_lucas_kanade(reference: Tensor, support: Tensor, flow: Tensor | None) -> Tensor:
    """The kernel, for what ``runs_kernels`` accepts."""
    from vsvsr.triton_kernels.lucas_kanade import (  # type: ignore[import-not-found]  # its own folder
        lucas_kanade as launch,
    )

    return launch(reference, support, flow, _NOISE, _LIMIT)  # type: ignore[no-any-return]


@fused_lucas_kanade.register_fake
def _(reference: Tensor, support: Tensor, flow: Tensor | None) -> Tensor:
    return reference.new_empty((len(reference), 2, *reference.shape[-2:]))


def lucas_kanade(reference: Tensor, support: Tensor, flow: Tensor | None) -> Tensor:
    """The flow after one step of least-squares motion (Lucas and Kanade, 1981) over a smooth window.

    Args:
        reference: grey, ``(n, 1, h, w)`` fp32, finite.
        support: likewise.
        flow: the motion so far, ``(n, 2, h, w)`` in pixels; or that of half the size, ``(n, 2, h / 2, w / 2)`` in its
            own pixels, which is enlarged; None for no motion.

    Returns:
        ``(n, 2, h, w)`` in pixels, at most 1.5 away from ``flow`` in each direction.
    """
    tensors = (reference, support) if flow is None else (reference, support, flow)
    if runs_kernels(*tensors):
        fused: Tensor = fused_lucas_kanade(reference, support, flow)
        return fused
    return lucas_kanade_reference(reference, support, flow)


def lucas_kanade_reference(reference: Tensor, support: Tensor, flow: Tensor | None) -> Tensor:
    """The plain form of ``lucas_kanade``."""
    if flow is None:
        flow = reference.new_zeros(len(reference), 2, *reference.shape[-2:])
    elif flow.shape[-2:] != reference.shape[-2:]:
        flow = F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=False) * 2.0
    return flow + _step(reference, flow_warp_reference(support, flow, padding="border"))


def _average(x: Tensor) -> Tensor:
    """Mean over a window with replicated borders, as two passes of one dimension.

    Sums of shifted views: on a CPU several times faster than average pooling.
    """
    x = F.pad(x, (_WINDOW // 2,) * 4, mode="replicate")
    for dim in (-1, -2):
        length = x.shape[dim] - _WINDOW + 1
        total = x.narrow(dim, 0, length) + x.narrow(dim, 1, length)
        for offset in range(2, _WINDOW):
            total.add_(x.narrow(dim, offset, length))
        x = total
    return x * (1 / _WINDOW**2)


def _step(reference: Tensor, warped: Tensor) -> Tensor:
    """What to add to the motion with which the support was warped, ``(n, 2, h, w)``."""
    mean = F.pad((reference + warped) * 0.5, (1, 1, 1, 1), mode="replicate")
    dx = (mean[..., 1:-1, 2:] - mean[..., 1:-1, :-2]) * 0.5
    dy = (mean[..., 2:, 1:-1] - mean[..., :-2, 1:-1]) * 0.5
    dt = warped - reference
    moments = torch.cat((dx * dx, dx * dy, dy * dy, dx * dt, dy * dt), dim=1)
    xx, xy, yy, xt, yt = _average(_average(moments)).chunk(5, dim=1)
    xx, yy = xx + _NOISE, yy + _NOISE
    step: Tensor = torch.cat((xy * yt - yy * xt, xy * xt - xx * yt), dim=1) / (xx * yy - xy * xy)
    return step.clamp(-_LIMIT, _LIMIT)
