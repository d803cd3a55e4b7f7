"""BasicVSR checkpoints: BasicSR's layout as it is, OpenMMLab's by renaming."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vsvsr.models.basicvsr.network import BasicVSR
from vsvsr.models.common.loading import Loaded, build
from vsvsr.weights import read_tensors

_OPENMMLAB = (
    (r"^generator\.", ""),
    (r"^(?:backward|forward)_resblocks\.", lambda found: found[0].replace("resblocks", "trunk")),
    (r"^upsample1\.upsample_conv\.", "upconv1."),
    (r"^upsample2\.upsample_conv\.", "upconv2."),
    # OpenMMLab counts convolutions, BasicSR the layers of a Sequential with an activation after each convolution.
    (r"(basic_module\.\d\.basic_module\.)(\d)\.conv\.", lambda found: f"{found[1]}{2 * int(found[2])}."),
)
_BLOCK = re.compile(r"backward_trunk\.main\.2\.\d+\.conv1\.weight")


def load(path: Path) -> Loaded[BasicVSR]:
    """The network of a checkpoint in either layout; its tensors tell the sizes.

    Raises:
        UserError: the file cannot be read, or holds another network.
    """
    tensors = in_basicsr_layout(read_tensors(path)[0])
    network = build(partial(BasicVSR, *sizes(tensors)), tensors, path, "BasicVSR")
    return Loaded(network.to(memory_format=torch.channels_last), network.scale)


def in_basicsr_layout(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenMMLab's names (``generator.backward_resblocks...``) as BasicSR's; a state dict of BasicSR stays as it is."""
    if not any("_resblocks." in name for name in tensors):
        return dict(tensors)
    renamed = {}
    for name, tensor in tensors.items():
        if name == "step_counter":
            continue
        for pattern, replacement in _OPENMMLAB:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def sizes(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Channels and blocks of the network that a state dict belongs to, if it is one of BasicVSR."""
    fusion = tensors.get("fusion.weight")
    channels = len(fusion) if fusion is not None and fusion.dim() else 0
    return max(channels, 1), sum(_BLOCK.fullmatch(name) is not None for name in tensors)
