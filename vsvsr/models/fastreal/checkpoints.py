"""FastRealVSR networks on disk: safetensors with the configuration in the metadata."""

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from vsvsr.models.common.loading import Loaded, build, parse, read_settings, save_tensors
from vsvsr.models.fastreal.config import FastRealConfig, Restarts
from vsvsr.models.fastreal.network import FastRealVSR
from vsvsr.weights import read_tensors


@dataclass(frozen=True, kw_only=True)
class LoadedFastReal(Loaded[FastRealVSR]):
    """`Loaded`, and how often the recurrence of these weights restarts."""

    restarts: Restarts


def save(network: FastRealVSR, path: Path, metadata: dict[str, str]) -> None:
    """Write weights, configuration and ``metadata`` to ``path`` in one move.

    Args:
        network: to save.
        path: of the new file.
        metadata: recipe, data, licences, numbers; ``restarts``, a JSON object with the fields of `Restarts`, is what
            the filter takes ``segment`` and ``warmup`` from.
    """
    save_tensors(network, path, {**metadata, "config": json.dumps(asdict(network.config))})


def load(path: Path) -> LoadedFastReal:
    """The network that `save` wrote.

    Raises:
        UserError: the file is missing, damaged, or holds no such network.
    """
    tensors, metadata = read_tensors(path)
    config = parse(FastRealConfig, read_settings(metadata, path), path)
    network = build(partial(FastRealVSR, config), tensors, path, "FastRealVSR")
    stored = read_settings(metadata, path, "restarts") if "restarts" in metadata else {}
    return LoadedFastReal(
        network.to(memory_format=torch.channels_last),
        network.scale,
        network.min_side,
        restarts=parse(Restarts, stored, path),
    )
