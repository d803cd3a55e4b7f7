"""MIA under test."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.filters import Case, Fade
from vsvsr.models.mia import MIAVSR


def weights(folder: Path) -> Path:
    """A MIA network of one block a pass, whose masks are really mixed."""
    torch.manual_seed(3)
    network = MIAVSR(12, (1,), (2,), 8)
    for name, parameter in network.named_parameters():
        if "attn" in name or "mlp" in name:
            torch.nn.init.normal_(parameter, std=0.3)
        elif "spynet" in name:
            torch.nn.init.normal_(parameter, std=0.02 if parameter.dim() > 1 else 0.2)
    path = folder / "mia.safetensors"
    save_file(network.state_dict(), path)
    return path


CASE = Case(
    weights=weights,
    arguments={"length": 8, "overlap": 2, "refresh": 3},
    restarts=(8, 16),
    # Context of the chunks from 0, 8, 13, 14, 16 and 23 on, which cuts shorten.
    network_runs=24 + (2 + 2 + 0 + 2 + 2 + 0),
    frames=24,
    cuts=(13, 14, 23),
    requests=60,
    fade=Fade(frames=3, distance=5e-3, arguments={"length": 12}),
)
