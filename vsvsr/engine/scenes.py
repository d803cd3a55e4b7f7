"""Cuts between scenes, found from two neighbouring frames alone."""

import functools

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from vsvsr.engine.planes import Planes

_HEIGHT, _WIDTH = 36, 60
_BLOCK, _REACH = 12, 12
_ALIKE = 12 / 255
"""Mean difference of two thumbnails below which no block is searched: the picture has hardly changed."""
_FOUND = 0.7
"""Correlation of blocks with what they were found as, above which the scene is the same."""
_NOISE = (2 / 255) ** 2
"""Variance that counts for nothing, so that flat blocks do not correlate by their noise."""
_LUMA = (0.2126, 0.7152, 0.0722)


class SceneDetector:
    """Looks for the blocks of a small grey picture in that of the frame before; a cut is where most are nowhere.

    A pure function of the two frames. A cut to a flat picture is not found.
    """

    def look(self, frame: Planes) -> Tensor:
        """What is kept of a frame: luma ``(36, 60)`` in [0, 1], from a sampled grid."""
        rows, columns = max(frame.height // (2 * _HEIGHT), 1), max(frame.width // (2 * _WIDTH), 1)
        red, green, blue = (view[::rows, ::columns].float() for view in frame.views())
        luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
        return adaptive_avg_pool2d(luma.nan_to_num(0, 1, 0).clamp(0, 1)[None, None], (_HEIGHT, _WIDTH))[0, 0]

    def is_cut(self, before: Tensor, after: Tensor) -> bool:
        """Whether a scene starts with the later one of two neighbouring frames, both as ``look`` gives them."""
        if float((after - before).abs().mean()) < _ALIKE:
            return False
        blocks = after.unfold(0, _BLOCK, _BLOCK).unfold(1, _BLOCK, _BLOCK)
        places = before.unfold(0, _BLOCK, 1).unfold(1, _BLOCK, 1)
        found = _correlation(blocks.reshape(-1, _BLOCK**2), places.reshape(-1, _BLOCK**2))
        best = found.masked_fill(_far(), -1).amax(1)
        contrast = blocks.reshape(-1, _BLOCK**2).std(1)
        total = float(contrast.sum())
        return total > 0 and float((best * contrast).sum()) / total < _FOUND


@functools.cache
def _far() -> Tensor:
    """Which places of a picture are beyond the reach of each of its blocks: ``(blocks, places)``."""
    tops, lefts = range(0, _HEIGHT, _BLOCK), range(0, _WIDTH, _BLOCK)
    far = torch.ones((len(tops), len(lefts), _HEIGHT - _BLOCK + 1, _WIDTH - _BLOCK + 1), dtype=torch.bool)
    for y, top in enumerate(tops):
        for x, left in enumerate(lefts):
            far[y, x, max(top - _REACH, 0) : top + _REACH + 1, max(left - _REACH, 0) : left + _REACH + 1] = False
    return far.reshape(len(tops) * len(lefts), -1)


def _correlation(blocks: Tensor, places: Tensor) -> Tensor:
    """Normalised correlation ``(n, m)`` of blocks ``(n, pixels)`` with places ``(m, pixels)``."""
    blocks, places = (x - x.mean(1, keepdim=True) for x in (blocks, places))
    spread = ((x * x).mean(1) + _NOISE for x in (blocks, places))
    first, second = (x.sqrt() for x in spread)
    return blocks @ places.T / blocks.shape[1] / (first[:, None] * second)
