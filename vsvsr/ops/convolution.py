"""Convolutions whose algorithm on a GPU depends on the call alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsvsr.ops.dispatch import runs_kernels


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """``F.conv2d``; on a GPU with cuDNN's settings given by the call, whatever the process has set.

    cuDNN's settings belong to the process, and other plugins change them in the middle of a film: ``benchmark`` chooses
    algorithms by timing, and ``allow_tf32`` rounds the inputs of fp32 convolutions to 10 bits or does not. Here the
    algorithm is chosen by rule and is deterministic, and TF32 is allowed, as PyTorch's default is.
    """
    if not x.is_cuda or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    result: Tensor = torch.ops.aten._convolution.default(
        x,
        weight,
        bias,
        stride,
        padding,
        dilation,
        False,  # transposed
        (0, 0),  # padding of the output
        groups,
        False,  # benchmark
        True,  # deterministic
        True,  # cuDNN
        True,  # TF32
    )
    return result


class PinnedConv2d(nn.Conv2d):
    """``nn.Conv2d`` with `conv2d`, for padding with zeros."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002  as in torch
        assert not isinstance(self.padding, str)  # see below
        padding = self.padding[0], self.padding[1]
        stride, dilation = (self.stride[0], self.stride[1]), (self.dilation[0], self.dilation[1])
        return conv2d(input, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=self.groups)


def pin_convolutions(network: nn.Module) -> None:
    """Make every ``nn.Conv2d`` of ``network`` a `PinnedConv2d`, others' modules included."""
    for module in network.modules():
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = PinnedConv2d


@torch.library.custom_op("vsvsr::finish_convolution", mutates_args=("maps",))
def fused_finish(maps: Tensor, bias: Tensor, slope: float, slopes: Tensor | None, residual: Tensor | None) -> None:
    """The kernel, for what ``runs_kernels`` accepts: ``maps`` without gaps become ``act(maps + bias) + residual``."""
    from vsvsr.triton_kernels.finish_convolution import (  # type: ignore[import-not-found]  # its own folder
        finish_convolution as launch,
    )

    if residual is not None and residual.stride() != maps.stride():
        residual = torch.empty_like(maps).copy_(residual)
    launch(maps, bias, slope, slopes, residual)


@fused_finish.register_fake
def _(maps: Tensor, bias: Tensor, slope: float, slopes: Tensor | None, residual: Tensor | None) -> None:
    return None


def convolve(x: Tensor, conv: nn.Conv2d, *, slope: float | Tensor = 1.0, residual: Tensor | None = None) -> Tensor:
    """``act(conv(x)) + residual``, where ``act(v)`` is ``v`` from 0 on and ``slope v`` below.

    On a GPU in two launches: cuDNN adds the bias in one of its own, and nothing but Triton takes it together with the
    rest while the algorithm stays pinned.

    Args:
        x: ``(n, c, h, w)``.
        conv: with a bias, padded with zeros.
        slope: 1 for no activation, 0 for ReLU; a tensor ``(channels,)`` for PReLU.
        residual: of the result's shape.
    """
    slopes = slope if isinstance(slope, Tensor) else None
    given = [tensor for tensor in (conv.weight, conv.bias, slopes, residual) if tensor is not None]
    if conv.bias is not None and runs_kernels(x, *given):
        assert not isinstance(conv.padding, str)
        padding, stride = (conv.padding[0], conv.padding[1]), (conv.stride[0], conv.stride[1])
        result = conv2d(x, conv.weight, stride=stride, padding=padding)
        fused_finish(result, conv.bias, 1.0 if isinstance(slope, Tensor) else slope, slopes, residual)
        return result
    # In place on the convolution's own result, which no gradient needs.
    result = conv(x)
    if isinstance(slope, Tensor):
        result = F.prelu(result, slope)
    elif slope == 0.0:
        F.relu_(result)
    elif slope != 1.0:
        F.leaky_relu_(result, slope)
    return result if residual is None else result.add_(residual)
