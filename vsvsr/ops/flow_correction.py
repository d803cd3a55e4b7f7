"""A learned correction of a flow."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vsvsr.ops.dispatch import runs_kernels
from vsvsr.ops.flow_warp import flow_warp_reference

_SLOPE = 0.1


@torch.library.custom_op("vsvsr::flow_correction", mutates_args=())
def fused_flow_correction(
    reference: Tensor, support: Tensor, flow: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """The kernel, for what ``runs_kernels`` accepts: three launches."""
    from vsvsr.triton_kernels.flow_correction import (  # type: ignore[import-not-found]  # its own folder
        flow_correction as launch,
    )

    return launch(reference, support, flow, list(weights), list(biases), _SLOPE)  # type: ignore[no-any-return]


@fused_flow_correction.register_fake
def _(reference: Tensor, support: Tensor, flow: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    return torch.empty_like(flow)


def flow_correction(reference: Tensor, support: Tensor, flow: Tensor, layers: nn.Sequential) -> Tensor:
    """``flow + layers(inputs)``, where the inputs show what ``flow`` leaves: both pictures, the support warped, their
    difference, and the flow.

    Args:
        reference: grey, ``(n, 1, h, w)`` fp32.
        support: likewise.
        flow: ``(n, 2, h, w)`` fp32, in pixels.
        layers: three 3x3 convolutions from 5 to 2 channels, with leaky ReLUs of slope 0.1 in between.

    Returns:
        ``(n, 2, h, w)``.
    """
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    weights, biases = [layer.weight for layer in convolutions], [layer.bias for layer in convolutions]
    given = [bias for bias in biases if bias is not None]
    if runs_kernels(reference, support, flow, *weights, *given):
        fused: Tensor = fused_flow_correction(reference, support, flow, weights, given)
        return fused
    return flow_correction_reference(reference, support, flow, layers)


def flow_correction_reference(reference: Tensor, support: Tensor, flow: Tensor, layers: nn.Module) -> Tensor:
    """The plain form of ``flow_correction``."""
    warped = flow_warp_reference(support, flow, padding="border")
    inputs = torch.cat((reference - 0.5, warped - 0.5, (reference - warped) * 8.0, flow), dim=1)
    corrected: Tensor = flow + layers(inputs.contiguous(memory_format=torch.channels_last))
    return corrected
