"""BasicVSR checkpoints: BasicSR's layout as it is, OpenMMLab's by renaming."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vsvsr.errors import UserError
from vsvsr.models.basicvsr.network import BasicVSR
from vsvsr.weights import read_tensors

_OPENMMLAB = (
    (r"^generator\.", ""),
    (r"^(?:backward|forward)_resblocks\.", lambda found: found[0].replace("resblocks", "trunk")),
    (r"^upsample1\.upsample_conv\.", "upconv1."),
    (r"^upsample2\.upsample_conv\.", "upconv2."),
    # OpenMMLab counts convolutions, BasicSR the layers of a Sequential with an activation after each convolution.
    (r"(basic_module\.\d\.basic_module\.)(\d)\.conv\.", lambda found: f"{found[1]}{2 * int(found[2])}."),
)


def from_openmmlab(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenMMLab's names (``generator.backward_resblocks...``) in BasicSR's layout; other names stay."""
    renamed = {}
    for name, tensor in tensors.items():
        if name == "step_counter":
            continue
        for pattern, replacement in _OPENMMLAB:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def load(network: BasicVSR, path: Path) -> None:
    """Read a checkpoint in either layout into ``network``; ``UserError`` when it is of another network."""
    load_tensors(network, read_tensors(path)[0], path)


def load_tensors(network: BasicVSR, tensors: Mapping[str, Tensor], path: Path) -> None:
    """``load`` for tensors that were read from ``path``."""
    if any("_resblocks." in name for name in tensors):
        tensors = from_openmmlab(tensors)
    expected = network.state_dict()
    if tensors.keys() != expected.keys() or any(tensors[name].shape != expected[name].shape for name in expected):
        raise UserError(f"weights file {path} is not a checkpoint of BasicVSR with 64 channels and 30 blocks")
    network.load_state_dict(tensors)
