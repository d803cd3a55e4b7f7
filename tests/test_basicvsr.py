"""BasicVSR against the reference output of the published network, on the published weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vsvsr import weights
from vsvsr.errors import UserError
from vsvsr.models.basicvsr import BasicVSR, load
from vsvsr.models.basicvsr.checkpoints import in_basicsr_layout
from vsvsr.models.common.offload import OffloadBuffer

GOLDEN = Path(__file__).parent / "data" / "basicvsr_reds4_bikes.safetensors"


@pytest.fixture(scope="module")
def network() -> BasicVSR:
    """The published network; its weights come through the weight store, which downloads them on a fresh machine."""
    return load(weights.install("BasicVSR_REDS4")).network


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def frames(golden: dict[str, Tensor]) -> list[Tensor]:
    return list(golden["input"].float().div(255))


def test_flows_and_output_are_those_of_the_published_network(
    network: BasicVSR, golden: dict[str, Tensor], frames: list[Tensor]
) -> None:
    clip = torch.stack(frames)
    torch.testing.assert_close(network.spynet(clip[1:], clip[:-1]), golden["flows_forward"][0], atol=1e-4, rtol=0)
    torch.testing.assert_close(network.spynet(clip[:-1], clip[1:]), golden["flows_backward"][0], atol=1e-4, rtol=0)
    torch.testing.assert_close(network(clip[None]), golden["output"], atol=1e-4, rtol=0)


def test_upscaling_a_stretch_gives_the_frames_of_the_whole_clip_that_see_the_same_neighbours(
    network: BasicVSR, golden: dict[str, Tensor], frames: list[Tensor]
) -> None:
    whole = torch.stack(list(network.upscale(frames, range(5))))
    torch.testing.assert_close(whole, golden["output"][0], atol=1e-4, rtol=0)
    part = torch.stack(list(network.upscale(frames, range(1, 3), buffer=OffloadBuffer(0))))
    torch.testing.assert_close(part, whole[1:3], atol=0, rtol=0)
    shortened = torch.stack(list(network.upscale(frames[:4], range(1, 3))))
    assert (shortened - whole[1:3]).abs().max() > 1e-4


def test_the_published_checkpoints_all_load(frames: list[Tensor]) -> None:
    outputs = []
    for name in ("BasicVSR_REDS4", "BasicVSR_Vimeo90K_BIx4", "BasicVSR_Vimeo90K_BDx4"):
        net = load(weights.install(name)).network
        outputs.append(next(net.upscale(frames[:1], range(1))))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        difference = (outputs[first] - outputs[second]).abs().mean()
        assert 1e-4 < difference < 0.05


def test_openmmlabs_names_become_basicsrs(network: BasicVSR, tmp_path: Path) -> None:
    def foreign(name: str) -> str:
        for direction in ("backward", "forward"):
            name = name.replace(f"{direction}_trunk.", f"{direction}_resblocks.")
        name = name.replace("upconv1.", "upsample1.upsample_conv.").replace("upconv2.", "upsample2.upsample_conv.")
        if name.startswith("spynet.basic_module"):
            head, index, leaf = name.rsplit(".", 2)
            name = f"{head}.{int(index) // 2}.conv.{leaf}"
        return f"generator.{name}"

    state = network.state_dict()
    renamed = {foreign(name): tensor for name, tensor in state.items()}
    assert "generator.spynet.basic_module.5.basic_module.4.conv.weight" in renamed
    assert in_basicsr_layout(renamed).keys() == state.keys()
    path = tmp_path / "openmmlab.pth"
    torch.save({"meta": {"mmedit_version": "0.7.0"}, "state_dict": {**renamed, "step_counter": torch.zeros(1)}}, path)
    for name, tensor in load(path).network.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"params": {"conv.weight": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match=r"other.pth is not a checkpoint of BasicVSR: it lacks upconv1\.weight$"):
        load(path)


@pytest.mark.parametrize(("height", "width"), [(1, 300), (13, 400), (40, 72)])
def test_rendering_by_bands_is_reconstruction(network: BasicVSR, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(height)
    features = torch.rand(1, 64, height, width, generator=generator)
    frame = torch.rand(1, 3, height, width, generator=generator)
    expected = network.reconstruct(features, frame)[0]
    # Planes with a padded stride, as VapourSynth's are.
    planes = torch.full((3, 4 * height, 4 * width + 5), torch.nan)[:, :, : 4 * width]
    network.render(features, frame, planes.unbind(0))
    torch.testing.assert_close(planes, expected, atol=1e-5, rtol=0)
    halves = torch.empty(3, 4 * height, 4 * width, dtype=torch.float16)
    network.render(features, frame, halves.unbind(0))
    torch.testing.assert_close(halves.float(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 70), (63, 65)])
def test_small_frames_are_extended_and_cropped(network: BasicVSR, height: int, width: int) -> None:
    frames = list(torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)))
    outputs = list(network.upscale(frames, range(2)))
    assert [tuple(output.shape) for output in outputs] == [(3, 4 * height, 4 * width)] * 2
    assert all(torch.isfinite(output).all() for output in outputs)
    # Far from the reflected border the extension does not matter: compare with a hand-made reflection.
    by_hand = [
        torch.cat((f, f.flip(1)[:, 1:], f[:, 1:], f.flip(1)[:, 1:], f[:, 1:]), 1)[:, : max(64, height)] for f in frames
    ]
    by_hand = [torch.cat((f, f.flip(2)[:, :, 1:], f[:, :, 1:], f.flip(2)[:, :, 1:], f[:, :, 1:]), 2) for f in by_hand]
    by_hand = [f[:, :, : max(64, width)] for f in by_hand]
    expected = [output[:, : 4 * height, : 4 * width] for output in network.upscale(by_hand, range(2))]
    for output, reference in zip(outputs, expected, strict=True):
        torch.testing.assert_close(
            output[:, : 4 * height - 8, : 4 * width - 8], reference[:, :-8, :-8], atol=1e-5, rtol=0
        )


def test_half_precision_stays_close_and_keeps_flow_in_full(frames: list[Tensor]) -> None:
    net = load(weights.install("BasicVSR_REDS4")).network
    small = [frame[:, :64, :64] for frame in frames[:2]]
    expected = torch.stack(list(net.upscale(small, range(2))))
    net.half()
    assert net.fusion.weight.dtype == torch.float16
    assert all(parameter.dtype == torch.float32 for parameter in net.spynet.parameters())
    halves = torch.stack(list(net.upscale([frame.half() for frame in small], range(2))))
    assert halves.dtype == torch.float16
    torch.testing.assert_close(halves.float(), expected, atol=2e-2, rtol=0)
