"""Real-ESRGAN's networks against ncnn's own run of the published files, and FastReal's start from one of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from vsvsr import weights
from vsvsr.errors import UserError
from vsvsr.models.fastreal import PLAIN, FastRealConfig, FastRealVSR
from vsvsr.models.fastreal import load as load_fastreal
from vsvsr.models.fastreal import save as save_fastreal
from vsvsr.models.fastreal.flow import LightFlow
from vsvsr.models.fastreal.warm_start import from_per_frame, halved
from vsvsr.models.realesrgan import SRVGG, create, load_ncnn, load_published

GOLDEN = load_file(Path(__file__).parent / "data" / "realesrgan.safetensors")
"""``input`` uint8 (24, 32, 3) and ncnn 1.0.20261020's fp32 result (3, 96, 128) by name of the network."""


@pytest.mark.parametrize("name", ["realesr-animevideov3", "realesrgan-x4plus"])
def test_published_ncnn_files_give_the_pictures_of_ncnn(name: str) -> None:
    network = load_ncnn(name, weights.install(name))
    with torch.inference_mode():
        picture = network(GOLDEN["input"].permute(2, 0, 1)[None] / 255)[0]
    torch.testing.assert_close(picture, GOLDEN[name], rtol=0, atol=1e-4)


def test_a_published_pth_gives_the_same_network_as_the_ncnn_file(tmp_path: Path) -> None:
    network = load_ncnn("realesr-animevideov3", weights.install("realesr-animevideov3"))
    path = tmp_path / "realesr-animevideov3.pth"
    torch.save({"params": network.state_dict()}, path)
    again = load_published("realesr-animevideov3", path)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in again.state_dict().items())


def test_files_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(SRVGG(convolutions=3).state_dict(), path)
    with pytest.raises(UserError, match=r"other.pth is not a checkpoint of realesrgan-x4plus"):
        load_published("realesrgan-x4plus", path)
    content = weights.install("realesr-animevideov3").read_bytes()
    short, long = tmp_path / "short.bin", tmp_path / "long.bin"
    short.write_bytes(content[:-4])
    long.write_bytes(content + bytes(4))
    with pytest.raises(UserError, match=r"short.bin is too short for realesr-animevideov3"):
        load_ncnn("realesr-animevideov3", short)
    with pytest.raises(UserError, match=r"long.bin is 4 bytes too long"):
        load_ncnn("realesr-animevideov3", long)
    with pytest.raises(UserError, match=r"'other' is no network of Real-ESRGAN"):
        create("other")


def _published() -> SRVGG:
    torch.manual_seed(0)
    network = SRVGG()
    for layer in network.body:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    return network.requires_grad_(False)


def test_a_recurrent_network_without_weights_for_its_state_is_the_per_frame_network_it_started_from() -> None:
    published = _published()
    clip = torch.rand(1, 4, 3, 20, 24)
    with torch.no_grad():
        recurrent = from_per_frame(published, LightFlow(), state_gain=0.0)(clip)[0]
        plain = published(clip[0])
        exact = published.double()(clip[0].double())
    # How far rounding goes depends on the processor: as far as in the published network itself.
    rounding = (plain - exact).abs().max()
    assert 0 < rounding < 1e-4
    assert (recurrent - exact).abs().max() < 4 * rounding


def test_a_state_gain_lets_earlier_frames_reach_the_picture() -> None:
    published = _published()
    clip = torch.rand(1, 2, 3, 20, 24)
    other = torch.cat((torch.rand(1, 1, 3, 20, 24), clip[:, 1:]), dim=1)
    with torch.no_grad():
        network = from_per_frame(published, LightFlow(), state_gain=0.15)
        difference = (network(clip)[0, 1] - network(other)[0, 1]).abs().mean()
    assert difference > 1e-4


def test_the_plain_size_is_saved_and_loaded_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = FastRealVSR(PLAIN).eval()
    path = tmp_path / "plain.safetensors"
    save_fastreal(network, path, {})
    clip = torch.rand(1, 3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(load_fastreal(path).network(clip), network.to(memory_format=torch.channels_last)(clip))
    assert sum(value.numel() for value in network.parameters()) == 717_026


@pytest.mark.parametrize("config", [PLAIN, replace(PLAIN, base="bilinear")], ids=lambda config: config.base)
def test_a_halved_network_gives_the_averages_of_the_pictures(config: FastRealConfig) -> None:
    torch.manual_seed(3)
    network = FastRealVSR(config)
    clip = torch.rand(1, 3, 3, 16, 24)
    with torch.no_grad():
        whole, half = network(clip)[0], halved(network)(clip)[0]
    # Interpolation between pixels is a straight line; at the border it is not, but there the frame goes on as its edge.
    torch.testing.assert_close(half, F.avg_pool2d(whole, 2), rtol=0, atol=1e-5)


def test_only_networks_of_scale_4_with_one_convolution_as_head_can_be_halved() -> None:
    for config in (FastRealConfig(), replace(PLAIN, scale=2)):
        with pytest.raises(ValueError, match="only a network of scale 4 with a single head can be halved"):
            halved(FastRealVSR(config))
