"""Backward warping of feature maps by optical flow."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr.ops.dispatch import runs_kernels

_FAR = 2.0**20
"""Outside of every picture."""


@torch.library.custom_op("vsvsr::flow_warp", mutates_args=())
def fused_flow_warp(x: Tensor, flow: Tensor, border: bool) -> Tensor:
    """The kernel, for what ``runs_kernels`` accepts."""
    from vsvsr.triton_kernels.flow_warp import flow_warp as launch  # type: ignore[import-not-found]  # its own folder

    return launch(x, flow, border)  # type: ignore[no-any-return]


@fused_flow_warp.register_fake
def _(x: Tensor, flow: Tensor, border: bool) -> Tensor:
    return torch.empty_like(x)


def flow_warp(
    x: Tensor,
    flow: Tensor,
    *,
    interpolation: Literal["bilinear", "nearest"] = "bilinear",
    padding: Literal["zeros", "border"] = "zeros",
) -> Tensor:
    """Sample ``x`` at ``p + flow(p)`` for every pixel ``p``.

    Coordinates are computed in fp32 whatever the type of ``x``: fp16 loses whole pixels beyond 2048. A NaN in the flow
    counts as 0, an infinite displacement leads outside.

    Args:
        x: feature maps ``(n, c, h, w)``.
        flow: displacements in pixels ``(n, 2, h, w)``; channel 0 is horizontal, channel 1 vertical.
        interpolation: how to read between pixels.
        padding: what lies outside ``x``: zeros, or the nearest border pixel.

    Returns:
        Warped maps ``(n, c, h, w)`` in the type of ``x``.
    """
    if interpolation == "bilinear" and runs_kernels(x, flow):
        fused: Tensor = fused_flow_warp(x, flow, padding == "border")
        return fused
    return flow_warp_reference(x, flow, interpolation=interpolation, padding=padding)


def flow_warp_reference(
    x: Tensor,
    flow: Tensor,
    *,
    interpolation: Literal["bilinear", "nearest"] = "bilinear",
    padding: Literal["zeros", "border"] = "zeros",
) -> Tensor:
    """The plain form of ``flow_warp``."""
    height, width = x.shape[-2:]
    columns = torch.arange(width, device=x.device, dtype=torch.float32)
    rows = torch.arange(height, device=x.device, dtype=torch.float32)
    flow = flow.float().nan_to_num(0.0, _FAR, -_FAR)
    # Normalised to [-1, 1] between the centres of the corner pixels (align_corners=True).
    grid_x = (columns + flow[:, 0]) * (2.0 / max(width - 1, 1)) - 1.0
    grid_y = (rows[:, None] + flow[:, 1]) * (2.0 / max(height - 1, 1)) - 1.0
    grid = torch.stack((grid_x, grid_y), dim=-1)
    warped = F.grid_sample(x.float(), grid, mode=interpolation, padding_mode=padding, align_corners=True)
    return warped.to(x.dtype)
