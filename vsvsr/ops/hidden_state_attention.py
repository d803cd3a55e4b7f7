"""Selective cross attention over filtered copies of a hidden state (FastRealVSR, eq. 5 to 8)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr.ops.convolution import conv2d
from vsvsr.ops.dispatch import runs_kernels


def filter_depthwise(x: Tensor, kernels: Tensor) -> list[Tensor]:
    """``x`` followed by its copies filtered with each kernel, every channel alike, with replicated borders.

    Half precision is filtered in fp32: kernels rounded to fp16 sum to 0.9998 or 1.0002.

    Args:
        x: ``(n, c, h, w)``.
        kernels: ``(filters, k, k)``, odd ``k``; each sums to 1, so that a constant stays what it is.

    Returns:
        ``1 + filters`` tensors of the shape of ``x``.
    """
    # A plain number also where the exporter to ONNX records sizes as values: it must know the shape of the weights.
    channels, radius = int(x.shape[1]), kernels.shape[-1] // 2
    padded = F.pad(x, (radius,) * 4, mode="replicate")
    if x.dtype == torch.float16:
        padded = padded.float()
    weights = kernels.to(padded.dtype)[:, None, None].expand(-1, channels, -1, -1, -1)
    return [x, *(conv2d(padded, weight.contiguous(), groups=channels).to(x.dtype) for weight in weights)]


def attention_weights(query: Tensor, key_copies: list[Tensor], mix: Tensor) -> Tensor:
    """Softmax over the pool members at every pixel: ``softmax_i(<Q, K^i> / sqrt(d))``, summed in fp32.

    Member ``i`` is ``sum_j mix[i, j] * copy_j``, so only the products with the copies are formed.

    Args:
        query: ``(n, d, h, w)``.
        key_copies: the key map and its filtered copies, each ``(n, d, h, w)``.
        mix: ``(members, copies)``.

    Returns:
        ``(n, members, h, w)`` fp32, non-negative, summing to 1 over the members.
    """
    products = torch.stack([(query.float() * key.float()).sum(1) for key in key_copies], dim=1)
    logits = torch.einsum("ij,njhw->nihw", mix.float(), products) / math.sqrt(query.shape[1])
    return logits.softmax(dim=1)


def member_filters(kernels: Tensor, mix: Tensor) -> Tensor:
    """The filter of each member of the pool: ``(members, k, k)`` fp32; arguments as in ``hidden_state_attention``."""
    unfiltered = torch.zeros_like(kernels[:1], dtype=torch.float32)
    unfiltered[:, kernels.shape[1] // 2, kernels.shape[2] // 2].fill_(1.0)
    copies = torch.cat((unfiltered, kernels.float()))
    # No matrix product: whether those round their inputs is up to the process.
    return (mix.float()[:, :, None, None] * copies).sum(1)


@torch.library.custom_op("vsvsr::hidden_state_attention", mutates_args=())
def fused_hidden_state_attention(query: Tensor, key: Tensor, value: Tensor, filters: Tensor) -> Tensor:
    """The kernel, for what ``runs_kernels`` accepts; ``filters`` are those of ``member_filters``."""
    from vsvsr.triton_kernels.hidden_state_attention import (  # type: ignore[import-not-found]  # its own folder
        hidden_state_attention as launch,
    )

    return launch(query, key, value, filters)  # type: ignore[no-any-return]


@fused_hidden_state_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, filters: Tensor) -> Tensor:
    return torch.empty_like(value)


def hidden_state_attention(
    query: Tensor, key: Tensor, value: Tensor, kernels: Tensor, mix: Tensor, filters: Tensor | None = None
) -> Tensor:
    """``sum_i a_i V^i`` over the members of the pool, filters applied after the key and value convolutions.

    Filters and convolutions commute in the interior (paper's order filters the state first), and because every member's
    filter sums to 1, biases of the key and value convolutions may be part of ``key`` and ``value``.

    Args:
        query: convolved features of the current frame ``(n, d, h, w)``.
        key: convolved hidden state ``(n, d, h, w)``.
        value: the same with the value convolution, ``(n, c, h, w)``.
        kernels: blur kernels ``(filters, k, k)`` that sum to 1.
        mix: ``(members, 1 + filters)``, rows that sum to 1: what each member takes of the unfiltered map and of each
            filtered copy. A mean is ``(0, 1)``, its unsharp mask ``2h - h * k`` is ``(2, -1)``.
        filters: what ``member_filters`` makes of both, where it is at hand.

    Returns:
        ``(n, c, h, w)`` in the type of ``value``.
    """
    if runs_kernels(query, key, value):
        filters = member_filters(kernels, mix) if filters is None else filters
        fused: Tensor = fused_hidden_state_attention(query, key, value, filters)
        return fused
    return hidden_state_attention_reference(query, key, value, kernels, mix)


def hidden_state_attention_reference(query: Tensor, key: Tensor, value: Tensor, kernels: Tensor, mix: Tensor) -> Tensor:
    """The plain form of ``hidden_state_attention``."""
    weights = attention_weights(query, filter_depthwise(key, kernels), mix)
    shares = torch.einsum("ij,nihw->njhw", mix.float(), weights).to(value.dtype)
    copies = filter_depthwise(value, kernels)
    result = copies[0] * shares[:, 0:1]
    for j, copy in enumerate(copies[1:], start=1):
        result.add_(copy * shares[:, j : j + 1])
    return result
