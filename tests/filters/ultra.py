"""Ultra under test."""

from dataclasses import replace
from pathlib import Path

import torch

from tests.filters import Case, Fade
from vsvsr.models.ultra import TINY, RTSModule, build, save


def weights(folder: Path) -> Path:
    """A UltraVSR network whose frames see their neighbours."""
    torch.manual_seed(5)
    slim = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4}
    config = replace(TINY, unet={**TINY.unet, **slim}, vae={**TINY.vae, **slim}, rts_conv_channels=3)
    network = build(config)
    for module in network.modules():
        if isinstance(module, RTSModule):
            torch.nn.init.normal_(module.RTSConv.conv3.weight, std=0.1)
            torch.nn.init.normal_(module.RTSAtten.project_out.weight, std=0.1)
    path = folder / "ultra.safetensors"
    save(network, config, path, {})
    return path


CASE = Case(
    weights=weights,
    arguments={"length": 8},
    restarts=(8, 16),
    # Context of the chunks from 0, 8, 13, 14, 16 and 23 on: the rest of the scene.
    network_runs=24 + (5 + 8 + 0 + 7 + 2 + 0),
    frames=24,
    cuts=(13, 14, 23),
    requests=24,
    fade=Fade(frames=5, distance=1e-3, arguments={"length": 12}),
)
