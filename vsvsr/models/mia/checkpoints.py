"""MIA-VSR checkpoints in the official layout."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vsvsr.errors import UserError
from vsvsr.models.common.loading import Loaded, build
from vsvsr.models.mia.block import relative_position_index
from vsvsr.models.mia.network import MIAVSR
from vsvsr.weights import read_tensors

_BLOCK = re.compile(r"patch_align\.backward_1\.layers\.(\d+)\.residual_group\.blocks\.\d+\.attn\.qkv\.weight", re.ASCII)
_UNUSED = re.compile(r"patch_align\.\w+\.(conv_first|conv_first_feat|conv_before_upsample)\.(weight|bias)")
"""Layers of the official modules that no computation uses."""
_INDEX = ".attn.relative_position_index"
_PREDICTOR = ".attn.predmask."
PUBLISHED: Callable[[], MIAVSR] = MIAVSR
"""Makes the authors' network."""


def load(path: Path, *, use_mask: bool = True) -> Loaded[MIAVSR]:
    """The network that a checkpoint holds; its tensors tell the configuration.

    Args:
        path: an official file (``MIAVSR_REDS_x4.pth``, ``MIAVSR_Vid4_x4.pth``), or one of ours.
        use_mask: see `MIAVSR`; must be off for checkpoints without mask predictors (IIA-VSR).

    Raises:
        UserError: the file cannot be read, or holds another network.
    """
    tensors, _ = read_tensors(path)
    if use_mask and _depths(tensors) and not any(_PREDICTOR in name for name in tensors):
        raise UserError(f"weights file {path} holds no mask predictors; set mask=0")
    try:
        own, make = own_tensors(tensors, use_mask=use_mask), _constructor(tensors, use_mask=use_mask)
    except KeyError as error:
        raise UserError(f"weights file {path} is not a checkpoint of MIA-VSR: it lacks {error.args[0]}") from None
    except ValueError as error:
        raise _misfit(path, error) from None
    network = build(make, own, path, "MIA-VSR")
    return Loaded(network, network.scale)


def published_tensors(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict of the published network, in fp32, and the names of entries that are no part of it.

    Args:
        tensors: of one of the authors' files.
        path: of the file, for messages.

    Raises:
        UserError: an entry is missing or of another shape.
    """
    extra: list[str] = []
    try:
        network = build(PUBLISHED, own_tensors(tensors), path, "the published MIA-VSR", extra=extra)
    except ValueError as error:  # which a UserError is, too
        raise error if isinstance(error, UserError) else _misfit(path, error) from None
    return network.state_dict(), extra


def holds_mia(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict looks like one of MIA-VSR."""
    return bool(_depths(tensors))


def own_tensors(tensors: Mapping[str, Tensor], *, use_mask: bool = True) -> dict[str, Tensor]:
    """The state dict of `MIAVSR` from an official one, which also holds unused layers and the index of bias tables.

    Raises:
        ValueError: an index is not the one that is computed here.
    """
    own = {}
    for name, tensor in tensors.items():
        if name.endswith(_INDEX):
            # (window ** 2, 3 * window ** 2)
            window = math.isqrt(len(tensor)) if tensor.dim() == 2 else 0
            if tensor.shape != (window**2, 3 * window**2) or not torch.equal(
                tensor.long(), relative_position_index(window)
            ):
                raise ValueError(f"{name} is another index than that of the released networks")
        elif not _UNUSED.fullmatch(name) and (use_mask or _PREDICTOR not in name):
            own[name] = tensor
    return own


def _misfit(path: Path, error: ValueError) -> UserError:
    return UserError(f"weights file {path} is not a checkpoint of MIA-VSR: {error}")


def _constructor(tensors: Mapping[str, Tensor], *, use_mask: bool) -> "partial[MIAVSR]":
    """What makes the network that a state dict belongs to. Raises `KeyError`, `ValueError` if there is none."""
    depths = _depths(tensors)
    if not depths:
        raise KeyError("patch_align.backward_1.layers")
    mid_channels, embed_dim, _, _ = tensors["conv_before_upsample.weight"].shape
    tables = [
        tensors[f"patch_align.backward_1.layers.{stage}.residual_group.blocks.0.attn.relative_position_bias_table"]
        for stage in range(len(depths))
    ]
    rows, _ = tables[0].shape
    # 3 * (2 * window - 1) ** 2 rows, or 5 times as many displacements where all frames are queries.
    displacements = next((rows // frames for frames in (3, 5) if _is_square(rows, frames)), 0)
    window = (math.isqrt(displacements) + 1) // 2
    multi_frame = rows == 5 * displacements
    heads = [columns for _, columns in (table.shape for table in tables)]
    return partial(MIAVSR, embed_dim, depths, heads, mid_channels, (3, window, window), use_mask, multi_frame)


def _is_square(rows: int, frames: int) -> bool:
    """Whether ``rows`` is ``frames`` times a square."""
    return rows % frames == 0 and math.isqrt(rows // frames) ** 2 == rows // frames


def _depths(tensors: Mapping[str, Tensor]) -> list[int]:
    """Blocks in each stage, as far as stages are numbered without a gap."""
    blocks = Counter(match[1] for match in map(_BLOCK.fullmatch, tensors) if match)
    depths: list[int] = []
    while count := blocks[str(len(depths))]:
        depths.append(count)
    return depths
