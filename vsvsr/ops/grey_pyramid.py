"""Grey pictures of two frames, in ever smaller sizes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr.ops.dispatch import runs_kernels


@torch.library.custom_op("vsvsr::grey_pyramid", mutates_args=())
def fused_grey_pyramid(reference: Tensor, support: Tensor, levels: int) -> Tensor:
    """The kernel, for what ``runs_kernels`` accepts: all levels in one piece of memory, the finest first."""
    from vsvsr.triton_kernels.grey_pyramid import (  # type: ignore[import-not-found]  # its own folder
        grey_pyramid as launch,
    )

    return launch(reference, support, levels)  # type: ignore[no-any-return]


@fused_grey_pyramid.register_fake
def _(reference: Tensor, support: Tensor, levels: int) -> Tensor:
    pixels = sum(height * width for height, width in _sizes(reference, levels))
    return reference.new_empty(2 * len(reference) * pixels, dtype=torch.float32)


def _sizes(frame: Tensor, levels: int) -> list[tuple[int, int]]:
    """Height and width of each level, the finest first: padded to multiples of the coarsest's pixels."""
    height, width = (-(-side // 2 ** (levels - 1)) for side in frame.shape[-2:])
    return [(height << level, width << level) for level in reversed(range(levels))]


def grey_pyramid(reference: Tensor, support: Tensor, levels: int) -> list[tuple[Tensor, Tensor]]:
    """The mean of the channels, padded by repeating the border, then averages of 2x2 pixels again and again.

    Args:
        reference: frames ``(n, 3, h, w)``.
        support: likewise.
        levels: how many sizes.

    Returns:
        Both pictures of each level, the coarsest first, ``(n, 1, h', w')`` fp32; the finest has sides of the next
        multiple of ``2 ** (levels - 1)``.
    """
    if not runs_kernels(reference, support):
        return grey_pyramid_reference(reference, support, levels)
    n, sizes = len(reference), _sizes(reference, levels)
    everything: Tensor = fused_grey_pyramid(reference, support, levels)
    parts = everything.split_with_sizes([2 * n * height * width for height, width in sizes])
    pictures = [part.view(2 * n, 1, *size) for part, size in zip(parts, sizes, strict=True)]
    return [(both[:n], both[n:]) for both in reversed(pictures)]


def grey_pyramid_reference(reference: Tensor, support: Tensor, levels: int) -> list[tuple[Tensor, Tensor]]:
    """The plain form of ``grey_pyramid``."""
    multiple = 2 ** (levels - 1)
    height, width = reference.shape[-2:]
    padding = (0, -width % multiple, 0, -height % multiple)
    levels_of = []
    for frame in (reference, support):
        grey = [F.pad(frame.float().mean(1, keepdim=True), padding, mode="replicate")]
        for _ in range(levels - 1):
            grey.insert(0, F.avg_pool2d(grey[0], 2))
        levels_of.append(grey)
    return list(zip(*levels_of, strict=True))
