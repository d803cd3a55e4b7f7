"""FastRealVSR networks on disk: safetensors with the configuration in the metadata."""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vsvsr.errors import UserError
from vsvsr.models.fastreal.config import FastRealConfig
from vsvsr.models.fastreal.network import FastRealVSR


def save_fastreal(network: FastRealVSR, path: str | os.PathLike[str], metadata: dict[str, str]) -> None:
    """Write weights, configuration and ``metadata`` (recipe, data, licences, numbers) to ``path`` in one move."""
    path = Path(path)
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, {**metadata, "config": json.dumps(network.config.to_dict())})
    partial.replace(path)


def load_fastreal(path: str | os.PathLike[str]) -> FastRealVSR:
    """A network in evaluation mode, on the CPU, laid out channels last.

    Raises:
        UserError: the file is missing, is no safetensors file or holds no FastRealVSR network.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"FastReal: no weights at {path}; give the path of a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            config = (file.metadata() or {}).get("config")
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  # not a mapping
    except SafetensorError as error:
        raise UserError(f"FastReal: {path} is not a safetensors file ({error}); give weights made by vsvsr") from None
    if config is None:
        raise UserError(f"FastReal: {path} holds no network configuration; give weights made by vsvsr")
    network = FastRealVSR(FastRealConfig.from_dict(json.loads(config)))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"FastReal: {path} does not fit its configuration: {' '.join(str(error).split())}") from None
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
