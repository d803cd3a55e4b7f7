"""What every test may use."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import vapoursynth as vs
from safetensors.torch import save_file

from tests.clips import clip_path
from tests.ultra_files import write_base_folder
from vsvsr import weights
from vsvsr.models.fastreal import FastRealVSR, save_fastreal
from vsvsr.models.fastreal.config import COMPACT
from vsvsr.models.mia import MIAVSR
from vsvsr.models.skipvsr import SkipVSR, load
from vsvsr.models.ultra import TINY, RTSModule, build
from vsvsr.models.ultra.files import save_compact


@pytest.fixture
def core() -> Iterator[vs.Core]:
    """The core of this process, with its settings put back afterwards."""
    core = vs.core.core
    threads, cache = core.num_threads, core.max_cache_size
    yield core
    core.num_threads, core.max_cache_size = threads, cache


@pytest.fixture(scope="session")
def tiny_fastreal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FastReal network small enough for hundreds of frames, whose state matters for its picture."""
    torch.manual_seed(7)
    config = replace(COMPACT, channels=8, rb1_blocks=1, rb2_blocks=1, key_channels=8)
    network = FastRealVSR(config)
    for name, parameter in network.named_parameters():
        if name.startswith(("rb", "conv_last")):
            torch.nn.init.normal_(parameter, std=0.15)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_fastreal(network, path, {})
    return path


@pytest.fixture
def bikes(core: vs.Core) -> vs.VideoNode:
    """120 frames of a real clip, 48x32, RGBS."""
    clip = core.bs.VideoSource(str(clip_path("bikes.mp4")), cachemode=0)
    return core.resize.Bicubic(clip[:120], width=48, height=32, format=vs.RGBS, matrix_in_s="709")


@pytest.fixture(scope="session")
def tiny_mia(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MIA network of one block a pass, whose masks are really mixed."""
    torch.manual_seed(3)
    network = MIAVSR(12, (1,), (2,), 8)
    for name, parameter in network.named_parameters():
        if "attn" in name or "mlp" in name:
            torch.nn.init.normal_(parameter, std=0.3)
        elif "spynet" in name:
            torch.nn.init.normal_(parameter, std=0.02 if parameter.dim() > 1 else 0.2)
    path = tmp_path_factory.mktemp("weights") / "mia.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny_ultra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UltraVSR network whose frames see their neighbours."""
    torch.manual_seed(5)
    slim = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4}
    config = replace(TINY, unet={**TINY.unet, **slim}, vae={**TINY.vae, **slim}, rts_conv_channels=3)
    network = build(config)
    for module in network.modules():
        if isinstance(module, RTSModule):
            torch.nn.init.normal_(module.RTSConv.conv3.weight, std=0.1)
            torch.nn.init.normal_(module.RTSAtten.project_out.weight, std=0.1)
    path = tmp_path_factory.mktemp("weights") / "ultra.safetensors"
    save_compact(network, config, path, {})
    return path


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as Stable Diffusion 2.1-base, with tiny networks."""
    folder = tmp_path_factory.mktemp("base")
    write_base_folder(folder)
    return folder


@pytest.fixture(scope="session")
def skip_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published BasicVSR_REDS4 with the estimators that belong to it, in one file."""
    network = SkipVSR(threshold=0.5)
    load(network, weights.install("BasicVSR_REDS4"), weights.find("skip-estimators-BasicVSR_REDS4"))
    path = tmp_path_factory.mktemp("weights") / "skip.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return path
