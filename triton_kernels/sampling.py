"""What the kernels of the light flow share: how they read a grey picture and a flow."""

import triton
import triton.language as tl


@triton.jit
def sample(image, y, x, shift_y, shift_x, height, width):
    """Bilinear sample of ``image`` ``(height, width)`` at ``(y + shift_y, x + shift_x)``, the nearest border outside.

    As ``flow_warp`` with its border: a displacement that is no number counts as 0.
    """
    to_y = y + tl.where(shift_y == shift_y, shift_y, 0.0)
    to_x = x + tl.where(shift_x == shift_x, shift_x, 0.0)
    to_y = tl.minimum(tl.maximum(to_y, 0.0), height - 1.0)
    to_x = tl.minimum(tl.maximum(to_x, 0.0), width - 1.0)
    top = tl.floor(to_y)
    left = tl.floor(to_x)
    lower = to_y - top
    right = to_x - left
    first_y = top.to(tl.int32)
    first_x = left.to(tl.int32)
    next_y = tl.minimum(first_y + 1, height - 1)
    next_x = tl.minimum(first_x + 1, width - 1)
    above = (1.0 - right) * tl.load(image + first_y * width + first_x)
    above += right * tl.load(image + first_y * width + next_x)
    below = (1.0 - right) * tl.load(image + next_y * width + first_x)
    below += right * tl.load(image + next_y * width + next_x)
    return (1.0 - lower) * above + lower * below


@triton.jit
def enlarged(flow, y, x, height, width):
    """Twice the sample at ``(y, x)`` of a channel ``(height / 2, width / 2)`` that is enlarged to ``height x width``.

    As ``F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=False) * 2``.
    """
    half_y = tl.maximum((y + 0.5) * 0.5 - 0.5, 0.0)
    half_x = tl.maximum((x + 0.5) * 0.5 - 0.5, 0.0)
    first_y = half_y.to(tl.int32)
    first_x = half_x.to(tl.int32)
    lower = half_y - first_y
    right = half_x - first_x
    row = width // 2
    next_y = tl.minimum(first_y + 1, height // 2 - 1)
    next_x = tl.minimum(first_x + 1, row - 1)
    above = (1.0 - right) * tl.load(flow + first_y * row + first_x)
    above += right * tl.load(flow + first_y * row + next_x)
    below = (1.0 - right) * tl.load(flow + next_y * row + first_x)
    below += right * tl.load(flow + next_y * row + next_x)
    return 2.0 * ((1.0 - lower) * above + lower * below)
