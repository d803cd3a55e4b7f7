"""Convolutions whose algorithm on a GPU depends on the call alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
