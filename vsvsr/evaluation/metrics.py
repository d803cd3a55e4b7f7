"""Full-reference metrics on 8-bit pictures: PSNR, SSIM, flicker."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr.errors import UserError
from vsvsr.ops import flow_warp


def luma(images: Tensor) -> Tensor:
    """Y of ITU-R BT.601 in [16, 235], not rounded, of RGB ``(n, 3, h, w)`` in [0, 1]: ``(n, 1, h, w)``."""
    weights = images.new_tensor((65.481, 128.553, 24.966)).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True) + 16.0


def round_to_8_bit(images: Tensor) -> Tensor:
    """Values that survive storage in 8 bits, still in [0, 1]."""
    return (images.clamp(0, 1) * 255).round() / 255


def mean_of_finite(values: Sequence[float]) -> float:
    """Mean of the values that are finite, or of all where none is: one frame without an error leaves no mean."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite or values) / len(finite or values)


def check_size(picture: Tensor) -> None:
    """Raise a UserError where a picture ``(..., h, w)`` is too small for `ssim`."""
    height, width = picture.shape[-2:]
    if min(height, width) < 11:
        raise UserError(f"pictures of {width}x{height} cannot be compared; they need at least 11x11")


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """``10 log10(255^2 / MSE)`` in dB of each picture; inputs ``(n, c, h, w)`` on the scale 0 to 255."""
    error = (first.double() - second.double()).square().mean((1, 2, 3))
    return 10 * torch.log10(255.0**2 / error)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """SSIM of each picture: 11x11 Gaussian of sigma 1.5, valid region, mean over channels.

    Args:
        first: ``(n, c, h, w)`` on the scale 0 to 255, sides of at least 11.
        second: the same shape.
    """
    line = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    line = line / line.sum()
    n, c = first.shape[:2]
    x, y = first.double().flatten(0, 1)[:, None], second.double().flatten(0, 1)[:, None]
    moments = torch.cat((x, y, x * x, y * y, x * y), dim=1).flatten(0, 1)[:, None]
    moments = F.conv2d(F.conv2d(moments, line.view(1, 1, 1, 11)), line.view(1, 1, 11, 1))
    mean_x, mean_y, xx, yy, xy = moments.reshape(n * c, 5, *moments.shape[2:]).unbind(1)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    covariance = xy - mean_x * mean_y
    variances = xx - mean_x**2 + yy - mean_y**2
    value = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    result: Tensor = value.mean((1, 2)).view(n, c).mean(1)
    return result


def flicker(clip: Tensor, truth: Tensor, flows: Tensor) -> float:
    """How unsteady a clip is in time: the mean size of what its error changes by along the motion.

    With ``e_t`` the difference between clip and truth on the scale 0 to 255, the mean of
    ``|e_t - warp(e_{t-1})|``. A constant error is steady; an error that comes and goes is flicker.

    Args:
        clip: ``(t, c, h, w)`` on the scale 0 to 255.
        truth: the same shape.
        flows: motion of the truth from each frame but the first into the one before, ``(t - 1, 2, h, w)``.
    """
    error = clip - truth
    warped = flow_warp(error[:-1], flows, padding="border")
    return float((error[1:] - warped).abs().mean())
