"""FastRealVSR networks on disk: safetensors with the configuration in the metadata."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from vsvsr.models.common.loading import Loaded, build, parse, read_settings, save_tensors
from vsvsr.models.fastreal.config import FastRealConfig
from vsvsr.models.fastreal.network import FastRealVSR
from vsvsr.weights import read_tensors


def save(network: FastRealVSR, path: Path, metadata: dict[str, str]) -> None:
    """Write weights, configuration and ``metadata`` (recipe, data, licences, numbers) to ``path`` in one move."""
    save_tensors(network, path, {**metadata, "config": json.dumps(asdict(network.config))})


def load(path: Path) -> Loaded[FastRealVSR]:
    """The network that `save` wrote.

    Raises:
        UserError: the file is missing, damaged, or holds no such network.
    """
    tensors, metadata = read_tensors(path)
    config = parse(FastRealConfig, read_settings(metadata, path), path)
    network = build(partial(FastRealVSR, config), tensors, path, "FastRealVSR")
    return Loaded(network.to(memory_format=torch.channels_last), network.scale, network.min_side)
