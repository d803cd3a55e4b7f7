"""Real-ESRGAN's files: the ncnn weights of its portable version, and the published ``.pth``."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vsvsr import weights
from vsvsr.errors import UserError
from vsvsr.models.common.loading import build
from vsvsr.models.realesrgan.network import PerFrameNetwork, create

_HALF = 0x01306B47
"""Tag before weights in float16; a tag of 0 stands for float32."""


def load_ncnn(name: str, path: Path) -> PerFrameNetwork:
    """A network in evaluation mode with the weights of an ncnn ``.bin`` file.

    The file holds the layers in the order of their execution, which is the order of the network's modules. For each
    convolution: a 4-byte tag, the weights (padded to 4 bytes) and the bias as float32; for each PReLU: its slopes as
    float32.

    Args:
        name: see `create`.
        path: the file.

    Raises:
        UserError: the file cannot be read, or is not that network's to the last byte.
    """
    network = create(name)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.PReLU)]
    try:
        content = path.read_bytes()
        position = 0
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                half = int.from_bytes(content[position : position + 4], "little") == _HALF
                position = _read(layer.weight, content, position + 4, "<f2" if half else "<f4")
                assert layer.bias is not None
                position = _read(layer.bias, content, position, "<f4")
            else:
                position = _read(layer.weight, content, position, "<f4")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{path} is too short for {name}; give Real-ESRGAN's own ncnn file") from None
    if position != len(content):
        raise UserError(f"{path} is {len(content) - position} bytes too long for {name}; give Real-ESRGAN's own file")
    return network.eval().requires_grad_(False)


def _read(parameter: Tensor, content: bytes, position: int, dtype: str) -> int:
    """Fill ``parameter`` from the bytes at ``position``; returns the next layer's position, a multiple of 4."""
    values = np.frombuffer(content, dtype, parameter.numel(), position).astype(np.float32)
    parameter.data.copy_(torch.from_numpy(values).view_as(parameter))
    return position + -(-parameter.numel() * int(dtype[-1]) // 4) * 4


def load_published(name: str, path: Path) -> PerFrameNetwork:
    """A network in evaluation mode with the weights of a ``.pth`` file in the published layout.

    Args:
        name: see `create`.
        path: the file.

    Raises:
        UserError: the file cannot be read, or holds another network.
    """
    tensors, _ = weights.read_tensors(path)
    return build(partial(create, name), tensors, path, name)


def holds_x4plus(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict looks like that of RealESRGAN_x4plus."""
    return "body.0.rdb1.conv1.weight" in tensors


def x4plus_tensors(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict of RealESRGAN_x4plus in fp32, and the names of entries that are no part of it.

    Args:
        tensors: of the published ``.pth``.
        path: of the file, for messages.

    Raises:
        UserError: an entry is missing or of another shape.
    """
    extra: list[str] = []
    network = build(partial(create, "realesrgan-x4plus"), tensors, path, "RealESRGAN_x4plus", extra=extra)
    return network.state_dict(), extra
