"""FastReal under test."""

from dataclasses import replace
from pathlib import Path

import torch

from tests.filters import Case, Fade
from vsvsr.models.fastreal import FastRealVSR
from vsvsr.models.fastreal import save as save_fastreal
from vsvsr.models.fastreal.config import COMPACT


def weights(folder: Path) -> Path:
    """A FastReal network small enough for hundreds of frames, whose state matters for its picture."""
    torch.manual_seed(7)
    config = replace(COMPACT, channels=8, rb1_blocks=1, rb2_blocks=1, key_channels=8)
    network = FastRealVSR(config)
    for name, parameter in network.named_parameters():
        if name.startswith(("rb", "conv_last")):
            torch.nn.init.normal_(parameter, std=0.15)
    path = folder / "tiny.safetensors"
    save_fastreal(network, path, {})
    return path


CASE = Case(
    weights=weights,
    arguments={"segment": 20, "warmup": 5, "state_cache": 1},
    restarts=(20, 40, 60, 80, 100),
    network_runs=120 + 5 * 5,
    # The small network's state grows without a bound, on any clip; the shipped weights' does not.
    fade=Fade(frames=5, distance=1e-3, arguments={"model_path": "", "segment": 0}),
)
