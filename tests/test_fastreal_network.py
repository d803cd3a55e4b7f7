"""FastRealVSR: parameter counts, hidden state attention, streaming, files."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr.errors import UserError
from vsvsr.models.fastreal import COMPACT, FastRealConfig, FastRealVSR, load, save
from vsvsr.models.fastreal.attention import SelectiveCrossAttention
from vsvsr.models.fastreal.flow import LightFlow
from vsvsr.ops import flow_warp, hidden_state_attention
from vsvsr.ops.hidden_state_attention import filter_depthwise

SMALL = FastRealConfig(channels=8, rb1_blocks=1, rb2_blocks=1, key_channels=8)
SMALL_COMPACT = dataclasses.replace(COMPACT, channels=8, rb2_blocks=1, key_channels=4)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def make(config: FastRealConfig, seed: int = 0) -> FastRealVSR:
    torch.manual_seed(seed)
    network = FastRealVSR(config).eval()
    if isinstance(network.hsa, SelectiveCrossAttention):
        # The initial queries and keys are so small that the attention would be uniform.
        for conv in (network.hsa.q, network.hsa.k):
            torch.nn.init.normal_(conv.weight, std=0.5)
    return network


def attention(config: FastRealConfig) -> SelectiveCrossAttention:
    hsa = make(config).hsa
    assert isinstance(hsa, SelectiveCrossAttention)
    return hsa


def test_the_full_size_network_has_the_parameters_of_the_paper() -> None:
    counts = {
        variant: sum(p.numel() for p in FastRealVSR(FastRealConfig(hsa=variant)).parameters())
        for variant in ("full", "none", "conv")
    }
    assert counts == {"full": 3_807_151, "none": 3_696_367, "conv": 3_696_367 + 184_384}


def test_the_full_size_network_names_its_weights_as_basicsr_does() -> None:
    state = FastRealVSR().state_dict()
    assert state["rb1.main.0.weight"].shape == (64, 3, 3, 3)
    assert state["rb2.main.0.weight"].shape == (64, 128, 3, 3)
    assert state["rb2.main.2.19.conv2.bias"].shape == (64,)
    assert state["hsa.kernels"].shape == (3, 5, 5)
    assert {"hsa.q.weight", "hsa.k.weight", "hsa.v.weight", "upconv1.weight", "upconv2.weight"} <= state.keys()
    assert {"conv_hr.weight", "conv_last.weight", "spynet.basic_module.5.basic_module.8.bias"} <= state.keys()


@torch.inference_mode()
@pytest.mark.parametrize("config", [SMALL, SMALL_COMPACT], ids=["full", "compact"])
def test_streaming_equals_the_whole_clip_bit_for_bit(config: FastRealConfig) -> None:
    network = make(config)
    clip = rand(1, 4, 3, 40, 48)
    hidden, previous, pictures = None, None, []
    for frame in clip.unbind(1):
        hidden = network.propagate(frame, previous, hidden)
        previous = frame
        pictures.append(network.reconstruct(hidden, frame))
    assert torch.equal(torch.stack(pictures, dim=1), network(clip))


@torch.inference_mode()
@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("config", [SMALL, SMALL_COMPACT], ids=["full", "compact"])
def test_rendered_planes_are_the_top_left_of_the_reconstruction(config: FastRealConfig, scale: int) -> None:
    network = make(dataclasses.replace(config, scale=scale))
    frame = rand(1, 3, 40, 48)
    hidden = network.propagate(frame, None, None)
    canvas = torch.full((3, 36 * scale, 64 * scale), 7.0)
    planes = [plane[:, : 40 * scale] for plane in canvas]
    network.render(hidden, frame, planes)
    expected = network.reconstruct(hidden, frame)[0, :, : 36 * scale, : 40 * scale]
    assert torch.equal(canvas[:, :, : 40 * scale], expected)
    assert bool((canvas[:, :, 40 * scale :] == 7.0).all())


@torch.inference_mode()
@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("base", ["bilinear", "bicubic"])
def test_a_single_head_without_detail_is_plain_upsampling(base: Literal["bilinear", "bicubic"], scale: int) -> None:
    config = replace(SMALL_COMPACT, scale=scale, base=base)
    network = make(config)
    torch.nn.init.zeros_(network.conv_last.weight)
    torch.nn.init.zeros_(network.conv_last.bias)
    frame = rand(1, 3, 9, 11)
    expected = F.interpolate(frame, scale_factor=scale, mode=base, align_corners=False)
    torch.testing.assert_close(network.reconstruct(torch.zeros(1, 8, 9, 11), frame), expected, rtol=0, atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("head", ["single", "two_step"])
@pytest.mark.parametrize("base", ["nearest", "bilinear", "bicubic"])
def test_every_head_takes_every_base(head: Literal["single", "two_step"], base: Literal["nearest"]) -> None:
    network = FastRealVSR(replace(SMALL_COMPACT, head=head, base=base)).eval()
    frame, planes = torch.rand(1, 3, 16, 20), torch.empty(3, 64, 80)
    with torch.inference_mode():
        state = network.propagate(frame, None, None)
        network.render(state, frame, planes.unbind())
        assert torch.equal(planes, network.reconstruct(state, frame)[0])


def test_without_attention_a_step_is_the_forward_branch_of_basicvsr_with_the_state_first() -> None:
    network = make(dataclasses.replace(SMALL, hsa="none"))
    previous, frame, hidden = rand(1, 3, 40, 48), rand(1, 3, 40, 48, seed=1), rand(1, 8, 40, 48, seed=2)
    features = network.rb1(frame)
    warped = flow_warp(hidden, network.spynet(frame, previous))
    expected = network.rb2(torch.cat((warped, features), dim=1))
    assert torch.equal(network.propagate(frame, previous, hidden), expected)


@torch.inference_mode()
@pytest.mark.parametrize("config", [SMALL, SMALL_COMPACT], ids=["reference", "fast"])
def test_a_constant_state_is_attended_to_evenly(config: FastRealConfig) -> None:
    hsa = attention(config)
    hidden, features = torch.full((1, 8, 16, 16), 0.3), rand(1, 8, 16, 16)
    # Away from the borders, where the zero padding of the convolutions makes the members differ.
    inner = (..., slice(4, -4), slice(4, -4))
    weights = hsa.weights(hidden, features)[inner]
    torch.testing.assert_close(weights, torch.full_like(weights, 0.2), rtol=0, atol=1e-5)
    torch.testing.assert_close(hsa(hidden, features)[inner], hsa.v(hidden)[inner], rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("config", [SMALL, SMALL_COMPACT], ids=["reference", "fast"])
def test_attention_weights_are_not_negative_and_sum_to_one(config: FastRealConfig) -> None:
    hsa = attention(config)
    weights = hsa.weights(rand(2, 8, 12, 14), rand(2, 8, 12, 14, seed=1))
    assert weights.shape == (2, 5, 12, 14)
    assert float(weights.min()) >= 0.0
    assert float(weights.std()) > 0.01
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 12, 14))


@torch.inference_mode()
@pytest.mark.parametrize("config", [SMALL, SMALL_COMPACT], ids=["reference", "fast"])
def test_the_order_of_the_pool_does_not_matter(config: FastRealConfig) -> None:
    hsa = attention(config)
    shuffled = SelectiveCrossAttention(dataclasses.replace(config, pool=tuple(reversed(config.pool))))
    shuffled.load_state_dict({k: v for k, v in hsa.state_dict().items() if k != "kernels"}, strict=False)
    hidden, features = rand(1, 8, 12, 14), rand(1, 8, 12, 14, seed=1)
    torch.testing.assert_close(shuffled(hidden, features), hsa(hidden, features), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_filtering_after_the_convolutions_equals_the_paper_away_from_the_border() -> None:
    reference = attention(SMALL)
    fast = SelectiveCrossAttention(dataclasses.replace(SMALL, fast_sca=True))
    fast.load_state_dict(reference.state_dict())
    hidden, features = rand(1, 8, 20, 24), rand(1, 8, 20, 24, seed=1)
    expected, result = reference(hidden, features), fast(hidden, features)
    torch.testing.assert_close(result[..., 3:-3, 3:-3], expected[..., 3:-3, 3:-3], rtol=0, atol=2e-5)
    assert float((result - expected).abs().max()) > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("fast_sca", [False, True])
def test_a_probe_puts_one_member_in_the_place_of_all(fast_sca: bool) -> None:
    hsa = attention(dataclasses.replace(SMALL, fast_sca=fast_sca))
    hidden, features = rand(1, 8, 20, 24), rand(1, 8, 20, 24, seed=1)
    hsa.probe = 3
    blurred = F.avg_pool2d(F.pad(hidden, (1, 1, 1, 1), mode="replicate"), 3, 1)
    expected = hsa.v(2 * hidden - blurred)
    torch.testing.assert_close(hsa(hidden, features)[..., 3:-3, 3:-3], expected[..., 3:-3, 3:-3], rtol=0, atol=2e-5)


def test_the_attention_op_is_the_weighted_sum_that_eq_8_names() -> None:
    query, key, value = rand(1, 4, 6, 7), rand(1, 4, 6, 7, seed=1), rand(1, 6, 6, 7, seed=2)
    kernels = torch.full((1, 3, 3), 1 / 9)
    mix = torch.tensor(((0.0, 1.0), (2.0, -1.0)))
    blur = [F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1) for x in (key, value)]
    keys, values = (blur[0], 2 * key - blur[0]), (blur[1], 2 * value - blur[1])
    scores = torch.stack([(query * k).sum(1) / 2.0 for k in keys]).softmax(0)
    expected = scores[0][:, None] * values[0] + scores[1][:, None] * values[1]
    torch.testing.assert_close(hidden_state_attention(query, key, value, kernels, mix), expected)


@torch.inference_mode()
@pytest.mark.parametrize(("variant", "members"), [("blurry", 3), ("sharp", 2), ("full", 5)])
def test_the_ablations_take_their_part_of_the_pool(variant: str, members: int) -> None:
    config = replace(SMALL, hsa=variant)
    assert attention(config).weights(rand(1, 8, 10, 10), rand(1, 8, 10, 10)).shape[1] == members


@torch.inference_mode()
def test_two_hundred_still_frames_do_not_drift() -> None:
    hsa = FastRealVSR(SMALL_COMPACT).hsa
    state = start = rand(1, 8, 24, 24)
    for _ in range(200):
        assert hsa is not None
        state = hsa(state, start)
    # Fresh weights average the pool: no frequency is amplified.
    assert float(state.abs().max()) <= float(start.abs().max()) * 1.01


@torch.inference_mode()
def test_light_flow_of_two_equal_frames_of_any_size_is_zero() -> None:
    network = LightFlow()
    flow = network(rand(1, 3, 17, 41), rand(1, 3, 17, 41))
    torch.testing.assert_close(flow, torch.zeros(1, 2, 17, 41), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_light_flow_follows_a_picture_that_moves() -> None:
    picture = F.interpolate(rand(1, 3, 12, 16), scale_factor=8, mode="bicubic", align_corners=False)
    # The picture moves 3 pixels to the right and 1 up, so what is here now was 3 to the left and 1 below before.
    moved = picture.roll((-1, 3), dims=(2, 3))
    flow = LightFlow()(moved, picture)[..., 16:-16, 16:-16]
    torch.testing.assert_close(flow.mean((0, 2, 3)), torch.tensor((-3.0, 1.0)), rtol=0, atol=0.15)


@torch.inference_mode()
@pytest.mark.parametrize("config", [SMALL, SMALL_COMPACT], ids=["full", "compact"])
def test_the_smallest_frame_that_is_promised_works(config: FastRealConfig) -> None:
    network = make(config)
    frame = rand(1, 3, network.min_side, network.min_side)
    hidden = network.propagate(frame, frame, network.propagate(frame, None, None))
    assert bool(network.reconstruct(hidden, frame).isfinite().all())


@torch.inference_mode()
def test_a_saved_network_comes_back_with_its_configuration_and_pixels(tmp_path: Path) -> None:
    network = make(SMALL_COMPACT)
    save(network, tmp_path / "net.safetensors", {"recipe": "none"})
    loaded = load(tmp_path / "net.safetensors").network
    assert loaded.config == SMALL_COMPACT
    clip = rand(1, 3, 3, 20, 24)
    torch.testing.assert_close(loaded(clip), network(clip), rtol=0, atol=1e-5)


def test_files_that_are_no_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no weights")
    for name, words in (("text", "not a safetensors file"), ("missing", "does not exist")):
        with pytest.raises(UserError, match=words) as error:
            load(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(error.value)


@torch.inference_mode()
def test_half_precision_keeps_the_flow_in_single_precision() -> None:
    network = make(SMALL_COMPACT).half()
    assert network.conv_last.weight.dtype == torch.float16
    frame = rand(1, 3, 16, 16).half()
    assert network.flow(frame, frame).dtype == torch.float32


@torch.inference_mode()
@pytest.mark.parametrize("fast", [True, False], ids=["commuted", "reference order"])
def test_a_constant_state_passes_the_pool_unchanged_in_half_precision(fast: bool) -> None:
    """Filters that sum to 0.9998 would make it fade by a twentieth over a segment."""
    network = make(replace(SMALL_COMPACT, fast_sca=fast)).half()
    pool = network.hsa
    assert isinstance(pool, SelectiveCrossAttention)
    assert pool.kernels.dtype == pool.mix.dtype == torch.float32
    assert torch.equal(pool.kernels, make(SMALL_COMPACT).hsa.kernels)
    constant = torch.full((1, 1, 7, 9), 1.5, dtype=torch.float16)
    for copy in filter_depthwise(constant, pool.kernels):
        assert torch.equal(copy, constant)
    for member in pool.members(constant):
        assert torch.equal(member, constant)
