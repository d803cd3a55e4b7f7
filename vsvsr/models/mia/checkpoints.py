"""MIA-VSR checkpoints in the official layout."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vsvsr.errors import UserError
from vsvsr.models.mia.network import MIAVSR
from vsvsr.weights import read_tensors

_BLOCK = re.compile(r"patch_align\.backward_1\.layers\.(\d+)\.residual_group\.blocks\.(\d+)\.attn\.qkv\.weight")


def load(path: Path, *, use_mask: bool = True) -> MIAVSR:
    """The network that a checkpoint holds, in evaluation mode on the CPU; its shapes tell the configuration.

    Args:
        path: an official file (``MIAVSR_REDS_x4.pth``, ``MIAVSR_Vid4_x4.pth``), or one of ours.
        use_mask: see `MIAVSR`; must be off for checkpoints without mask predictors (IIA-VSR).

    Raises:
        UserError: the file cannot be read, or holds another network.
    """
    tensors, _ = read_tensors(path)
    if use_mask and tensors and not any(".predmask." in name for name in tensors) and _depths(tensors):
        raise UserError(f"weights file {path} holds no mask predictors; set mask=0")
    try:
        network = _network(tensors, use_mask=use_mask)
        network.load_state_dict(tensors)
    except KeyError as error:
        raise UserError(f"weights file {path} is not a checkpoint of MIA-VSR: it holds no {error.args[0]}") from None
    except (RuntimeError, ValueError, IndexError) as error:
        detail = " ".join(str(error).split())
        raise UserError(f"weights file {path} is not a checkpoint of MIA-VSR: {detail}") from None
    return network.eval().requires_grad_(False)


def _network(tensors: Mapping[str, Tensor], *, use_mask: bool) -> MIAVSR:
    mid_channels, embed_dim = tensors["conv_before_upsample.weight"].shape[:2]
    depths = _depths(tensors)
    if not depths:
        raise KeyError("patch_align.backward_1.layers")
    tables = [
        tensors[f"patch_align.backward_1.layers.{stage}.residual_group.blocks.0.attn.relative_position_bias_table"]
        for stage in range(len(depths))
    ]
    window = (math.isqrt(len(tables[0]) // 3) + 1) // 2
    return MIAVSR(embed_dim, depths, [table.shape[1] for table in tables], mid_channels, (3, window, window), use_mask)


def _depths(tensors: Mapping[str, Tensor]) -> list[int]:
    """Blocks in each stage."""
    found = [tuple(map(int, match.groups())) for match in map(_BLOCK.fullmatch, tensors) if match]
    stages = [stage for stage, _ in found]
    return [stages.count(stage) for stage in range(max(stages, default=-1) + 1)]
