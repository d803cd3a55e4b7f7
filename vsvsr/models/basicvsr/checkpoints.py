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
_REALBASICVSR = ("generator_ema.basicvsr.", "generator.basicvsr.", "basicvsr.")
_BLOCK = re.compile(r"backward_trunk\.main\.2\.\d+\.conv1\.weight")


def load(path: Path) -> Loaded[BasicVSR]:
    """The network of a checkpoint in either layout; its tensors tell the sizes.

    Raises:
        UserError: the file cannot be read, or holds another network.
    """
    tensors = in_basicsr_layout(read_tensors(path)[0])
    network = build(partial(BasicVSR, *sizes(tensors)), tensors, path, "BasicVSR")
    return Loaded(network.to(memory_format=torch.channels_last), network.scale)


def realbasicvsr_tensors(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The BasicVSR in the published RealBasicVSR (64 channels, 20 blocks), in BasicSR's layout, in fp32.

    RealBasicVSR cleans frames with another network first, which is left out; averaged weights are preferred.

    Args:
        tensors: of the authors' file.
        path: of the file, for messages.

    Returns:
        The state dict, and the names of BasicVSR's entries that are no part of it.

    Raises:
        UserError: an entry is missing or of another shape.
    """
    prefix = next(prefix for prefix in _REALBASICVSR if any(name.startswith(prefix) for name in tensors))
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    extra: list[str] = []
    network = build(partial(BasicVSR, 64, 20), in_basicsr_layout(own), path, "RealBasicVSR's BasicVSR", extra=extra)
    return network.state_dict(), extra


def holds_realbasicvsr(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict looks like RealBasicVSR's."""
    return any(name.startswith(_REALBASICVSR) for name in tensors)


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
