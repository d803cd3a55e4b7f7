"""Skip under test."""

import re
from pathlib import Path

from safetensors.torch import save_file

from tests.filters import Case, Fade
from vsvsr import weights as published
from vsvsr.models.skipvsr import load

BLOCKS = 5
"""Residual blocks that are kept of the thirty of each trunk."""


def weights(folder: Path) -> Path:
    """The first blocks of the published BasicVSR_REDS4 with the estimators that belong to it, in one file."""
    estimators = published.find("skip-estimators-BasicVSR_REDS4")
    tensors = load(published.install("BasicVSR_REDS4"), estimators).network.state_dict()
    path = folder / "skip.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items() if _block(name) < BLOCKS}, path)
    return path


def _block(name: str) -> int:
    """The number of the block that a tensor belongs to, 0 outside of them."""
    found = re.match(r"(?:backward|forward)_trunk\.main\.2\.(\d+)\.", name)
    return int(found[1]) if found else 0


CASE = Case(
    weights=weights,
    arguments={"length": 6, "overlap": 1, "threshold": 0.5},
    restarts=(6, 12),
    # Context of the chunks from 0, 6, 8, 9, 12 and 15 on, which cuts shorten.
    network_runs=18 + (1 + 1 + 0 + 1 + 1 + 0),
    frames=18,
    cuts=(8, 9, 15),
    requests=30,
    # BasicVSR amplifies small differences all along a chunk, those of samples in range as well.
    fade=Fade(frames=2, distance=0.3, arguments={"length": 12}),
)
