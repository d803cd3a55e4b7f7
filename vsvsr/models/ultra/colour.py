"""Colour fix: the network's detail on the colours of the input (after StableSR), in float."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

ColourFix = Literal["wavelet", "adain", "none"]


def fix_colour(output: Tensor, reference: Tensor, method: ColourFix) -> Tensor:
    """Give ``output`` the colours of ``reference``; both RGB in [0, 1], ``(t, 3, h, w)``. The result is clamped."""
    if method == "wavelet":
        output = wavelet_fix(output, reference)
    elif method == "adain":
        output = adain_fix(output, reference)
    return output.clamp(0.0, 1.0)


def wavelet_fix(output: Tensor, reference: Tensor) -> Tensor:
    """``high(output) + low(reference)``; as high is what low leaves, ``output + low(reference - output)``."""
    return output + low_frequencies(reference - output)


def low_frequencies(image: Tensor) -> Tensor:
    """Five passes of the kernel ``(1, 2, 1) x (1, 2, 1) / 16`` with dilation 1, 2, 4, 8, 16; borders are replicated."""
    for dilation in (1, 2, 4, 8, 16):
        height, width = image.shape[-2:]
        padded = F.pad(image, (dilation,) * 4, mode="replicate")
        rows = padded[..., :height, :] + 2.0 * padded[..., dilation:-dilation, :] + padded[..., 2 * dilation :, :]
        image = (rows[..., :width] + 2.0 * rows[..., dilation:-dilation] + rows[..., 2 * dilation :]) / 16.0
    return image


def adain_fix(output: Tensor, reference: Tensor) -> Tensor:
    """Per frame and channel ``(x - mean_out) / std_out * std_ref + mean_ref``; variances unbiased, plus 1e-5."""
    mean, deviation = _statistics(output)
    mean_reference, deviation_reference = _statistics(reference)
    return (output - mean) / deviation * deviation_reference + mean_reference


def _statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    mean = image.mean(dim=(-2, -1), keepdim=True)
    return mean, (image.var(dim=(-2, -1), keepdim=True) + 1e-5).sqrt()
