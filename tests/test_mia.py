"""MIA-VSR: equal to the authors' network up to rounding; skipping masked work changes no result."""

import itertools
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import vapoursynth as vs
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.pixels import planes, play, same
from vsvsr.errors import UserError
from vsvsr.models.common.offload import OffloadBuffer
from vsvsr.models.mia import MIAVSR, Gate, KeepRatios, MaskSite, load, refreshing_gate, threshold_gate
from vsvsr.models.mia.alignment import patch_align
from vsvsr.models.mia.block import relative_position_index
from vsvsr.models.mia.checkpoints import own_tensors
from vsvsr.models.mia.multi_frame import JointAttention
from vsvsr.ops import masked_window_attention

DATA = Path(__file__).parent / "data"


def small(*, use_mask: bool = True, seed: int = 0) -> MIAVSR:
    """A network of two stages whose masks, position biases and flows affect the result."""
    torch.manual_seed(seed)
    network = MIAVSR(12, (2, 1), (3, 2), 8, use_mask=use_mask).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if "attn" in name or "mlp" in name:
            parameter.normal_(std=0.3)
        elif "spynet" in name:
            parameter.normal_(std=0.02 if parameter.dim() > 1 else 0.2)
    return network


def clip(frames: int, height: int, width: int, *, items: int = 1, seed: int = 1) -> Tensor:
    """A smooth moving picture with noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(items, 3, height // 8 + 3, width // 8 + 3, generator=generator)
    picture = F.interpolate(coarse, (height + frames, width + frames), mode="bicubic")
    moved = torch.stack([picture[..., i : i + height, i : i + width] for i in range(frames)], dim=1)
    return moved + 0.02 * torch.randn(moved.shape, generator=generator)


def injected(kind: str) -> Callable[[MaskSite, Tensor], Tensor]:
    """A gate whose masks depend on the site alone."""

    def gate(site: MaskSite, logits: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * site.step + site.block + len(site.module))
        if kind == "random":
            return torch.rand(logits.shape, generator=generator) < 0.3
        mask = torch.full(logits.shape, kind == "ones")
        if kind == "structured":
            top, left = torch.randint(0, 40, (2,), generator=generator).tolist()
            mask[:, top : top + 21, left : left + 30] = True
            mask[:, -3:, ::5] = True
        return mask

    return gate


def official_state(network: MIAVSR) -> dict[str, Tensor]:
    """What an official file of this configuration holds: also the unused layers, and the index of every table."""
    state = dict(network.state_dict())
    dim = network.conv_first.out_channels
    unused = {"conv_first": (dim, 3), "conv_first_feat": (dim, 64), "conv_before_upsample": (64, dim)}
    device = network.conv_first.weight.device
    for module, propagation in network.patch_align.items():
        for layer, (outputs, inputs) in unused.items():
            state[f"patch_align.{module}.{layer}.weight"] = torch.zeros(outputs, inputs, 3, 3, device=device)
            state[f"patch_align.{module}.{layer}.bias"] = torch.zeros(outputs, device=device)
        for name, part in propagation.named_modules():
            if name.endswith(".attn"):
                state[f"patch_align.{module}.{name}.relative_position_index"] = part.relative_position_index
    return state


@pytest.fixture(scope="module")
def golden() -> tuple[MIAVSR, dict[str, Tensor]]:
    """The authors' network of the reference file, with the flow network's weights drawn as its metadata says."""
    tensors = load_file(DATA / "mia_small.safetensors")
    network = MIAVSR(24, (2, 2), (6, 6), 16)
    state = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    state.update({f"spynet.{name}": value for name, value in network.spynet.state_dict().items()})
    generator = torch.Generator().manual_seed(1234)
    for name in sorted(state):
        if name.endswith("relative_position_index") or name in ("spynet.mean", "spynet.std"):
            continue
        drawn = torch.randn(state[name].shape, generator=generator)
        if name.startswith("spynet."):
            state[name] = (0.02 if drawn.dim() > 1 else 0.05) * drawn
    network.load_state_dict(own_tensors(state))
    return network.eval().requires_grad_(False), tensors


@pytest.mark.parametrize("sparse", [False, True])
def test_output_and_masks_are_those_of_the_authors_network(
    golden: tuple[MIAVSR, dict[str, Tensor]], sparse: bool
) -> None:
    network, tensors = golden
    # Of a run whose output was the authors' to 5.4e-7. Where a logit is zero up to rounding, the decision depends on
    # the processor, and the recurrence propagates it; there, and only there, the recorded decision is taken.
    masks = load_file(DATA / "mia_small_masks.safetensors")
    doubtful, kept = [], []

    def gate(site: MaskSite, logits: Tensor) -> Tensor:
        packed = masks.pop(".".join(map(str, site)))
        recorded = torch.from_numpy(np.unpackbits(packed.numpy()).astype(bool)).view(logits.shape)
        clear = logits.abs() >= 1e-5
        assert torch.equal(threshold_gate(site, logits)[clear], recorded[clear]), site
        doubtful.append(int((~clear).sum()))
        kept.append(float(recorded.float().mean()))
        return recorded

    with torch.inference_mode():
        output = network(tensors["input"], gate=gate, sparse=sparse)
    torch.testing.assert_close(output, tensors["output"], rtol=0, atol=1e-5)
    assert len(kept) == 4 * 3 * 4
    assert not masks
    assert sum(doubtful) < 20  # of 221,184
    assert sum(0.1 < ratio < 0.9 for ratio in kept) > 10  # masks keep some pixels and drop others


def test_flows_are_those_of_the_authors_network(golden: tuple[MIAVSR, dict[str, Tensor]]) -> None:
    network, tensors = golden
    forward, backward = network.flows(tensors["input"].unbind(1))
    torch.testing.assert_close(torch.stack(forward, dim=1), tensors["flows_forward"], rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.stack(backward, dim=1), tensors["flows_backward"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "frames", "height", "width"),
    [
        ("random", 8, 64, 72),
        ("structured", 5, 68, 76),
        ("random", 2, 67, 65),
        ("ones", 3, 64, 64),
        ("zeros", 4, 68, 64),
        ("random", 1, 64, 72),
    ],
)
def test_leaving_out_masked_work_does_not_change_the_result(kind: str, frames: int, height: int, width: int) -> None:
    network = small()
    frames_in = clip(frames, height, width, items=2 if frames == 2 else 1)
    masks: dict[bool, dict[MaskSite, Tensor]] = {True: {}, False: {}}
    inject = injected(kind)
    outputs = {}
    for sparse, seen in masks.items():

        def gate(site: MaskSite, logits: Tensor, seen: dict[MaskSite, Tensor] = seen) -> Tensor:
            seen[site] = inject(site, logits)
            return seen[site]

        with torch.inference_mode():
            outputs[sparse] = network(frames_in, gate=gate, sparse=sparse)
    torch.testing.assert_close(outputs[True], outputs[False], rtol=1e-5, atol=1e-5)
    assert masks[True].keys() == masks[False].keys()
    assert len(masks[True]) == 4 * 3 * (frames - 1)
    assert all(torch.equal(masks[True][site], masks[False][site]) for site in masks[True])


def test_predicted_masks_are_the_same_dense_and_sparse() -> None:
    network = small()
    seen: list[dict[MaskSite, float]] = []
    outputs = []
    for sparse in (True, False):
        ratios = KeepRatios()
        with torch.inference_mode():
            outputs.append(network(clip(4, 68, 76), gate=ratios, sparse=sparse))
        seen.append(ratios.ratios)
    assert seen[0] == seen[1]
    assert any(0.05 < ratio < 0.75 for ratio in seen[0].values())
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [0, 4])
@pytest.mark.parametrize(("height", "width"), [(16, 24), (19, 30), (8, 8)])
def test_window_attention_is_its_definition(shift: int, height: int, width: int) -> None:
    torch.manual_seed(height + shift)
    heads, channels, batch = 2, 10, 2
    tokens = torch.randn(batch, 3, height, width, channels)
    weight, bias = torch.randn(3 * channels, channels), torch.randn(3 * channels)
    position_bias = torch.randn(heads, 64, 192)
    # Pad, roll, partition into windows, attend, undo; regions numbered as in Swin.
    rows, columns = -(-height // 8), -(-width // 8)
    padded = F.pad(tokens, (0, 0, 0, 8 * columns - width, 0, 8 * rows - height)).roll((-shift, -shift), (2, 3))
    regions = torch.zeros(8 * rows, 8 * columns)
    if shift:
        for number, (down, right) in enumerate((a, b) for a in range(3) for b in range(3)):
            bands = (slice(0, -8), slice(-8, -4), slice(-4, None))
            regions[bands[down], bands[right]] = number
    windows = padded.view(batch, 3, rows, 8, columns, 8, channels).permute(0, 2, 4, 1, 3, 5, 6)
    windows = windows.reshape(batch * rows * columns, 192, channels)
    query, key, value = (
        F.linear(windows, weight, bias).view(-1, 192, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    )
    region = regions.view(rows, 8, columns, 8).transpose(1, 2).reshape(-1, 64)
    apart = -100.0 * (region[:, :, None] != region[:, None]).float().repeat(batch, 1, 3)
    logits = query[:, :, 128:] @ key.transpose(-1, -2) * (channels // heads) ** -0.5 + position_bias + apart[:, None]
    attended = (logits.softmax(-1) @ value).transpose(1, 2)
    image = attended.reshape(batch, rows, columns, 8, 8, channels).transpose(2, 3)
    image = image.reshape(batch, 8 * rows, 8 * columns, channels).roll((shift, shift), (1, 2))[:, :height, :width]

    everything = masked_window_attention(tokens, weight, bias, position_bias, shift=shift)
    torch.testing.assert_close(everything.view(batch, height, width, channels), image, rtol=1e-4, atol=1e-4)
    for share in (0.0, 0.1, 0.4, 0.9, 1.0):
        keep = torch.rand(batch, height, width) < share
        kept = masked_window_attention(tokens, weight, bias, position_bias, keep, shift=shift)
        torch.testing.assert_close(kept, image[keep], rtol=1e-4, atol=1e-4)


def test_the_released_configuration_has_the_published_size() -> None:
    with torch.device("meta"):
        network = MIAVSR()
    state = official_state(network)
    assert len(state) == 1690
    assert sum(value.numel() for name, value in state.items() if "index" not in name) - 6 == 16_596_719
    assert state["patch_align.forward_2.layers.3.residual_group.blocks.5.attn.relative_position_bias_table"].shape == (
        675,
        6,
    )


def test_alignment_reads_what_grid_sampling_reads() -> None:
    torch.manual_seed(5)
    height, width = 67, 76
    x = torch.randn(2, 6, height, width)
    flow = 6 * torch.randn(2, 2, height, width)
    flow[1] = 2.5  # half-way between two pixels
    means = F.avg_pool2d(F.pad(flow, (0, 4, 0, 5), mode="reflect"), 8)
    means = F.interpolate(means, scale_factor=8, mode="nearest")[..., :height, :width]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid_x = 2.0 * (columns + means[:, 0]) / (width - 1) - 1.0
    grid_y = 2.0 * (rows + means[:, 1]) / (height - 1) - 1.0
    grid = torch.stack((grid_x, grid_y), dim=-1)
    expected = F.grid_sample(x, grid, mode="nearest", padding_mode="zeros", align_corners=True)
    assert torch.equal(patch_align(x.permute(0, 2, 3, 1), flow).permute(0, 3, 1, 2), expected)


def test_alignment_by_whole_pixels_is_a_shift() -> None:
    x = torch.randn(1, 64, 72, 2)
    flow = torch.tensor((3.0, -2.0)).view(1, 2, 1, 1).expand(1, 2, 64, 72)
    expected = torch.zeros_like(x)
    expected[:, 2:, :-3] = x[:, :-2, 3:]
    assert torch.equal(patch_align(x, flow), expected)


def test_the_position_index_counts_from_the_oldest_frame() -> None:
    index = relative_position_index(8)
    assert index.shape == (64, 192)
    for query, frame, key in ((0, 0, 0), (63, 1, 5), (17, 2, 40)):
        row, column, key_row, key_column = query // 8, query % 8, key // 8, key % 8
        expected = (2 - frame) * 225 + (row - key_row + 7) * 15 + (column - key_column + 7)
        assert index[query, frame * 64 + key] == expected


def test_predictors_that_keep_everything_give_the_network_without_masks() -> None:
    network, plain = small(), small(use_mask=False)
    plain.load_state_dict(own_tensors(network.state_dict(), use_mask=False))
    for name, parameter in network.named_parameters():
        if name.endswith("predmask.rnn.bias"):
            parameter.fill_(1e6)
    frames = clip(3, 64, 72)
    with torch.inference_mode():
        torch.testing.assert_close(network(frames), plain(frames), rtol=1e-5, atol=1e-6)


def test_predictors_that_keep_nothing_still_let_the_frame_through() -> None:
    network = small()
    for name, parameter in network.named_parameters():
        if name.endswith("predmask.rnn.bias"):
            parameter.fill_(-1e6)
    ratios = KeepRatios()
    frames = clip(3, 64, 72)
    with torch.inference_mode():
        output = network(frames, gate=ratios)
        changed = network(torch.cat((frames[:, :-1], 1 - frames[:, -1:]), dim=1))
    assert set(ratios.ratios.values()) == {0.0}
    assert (output[:, -1] - changed[:, -1]).abs().mean() > 0.1


def test_a_refreshing_gate_computes_every_position_on_its_steps() -> None:
    ratios = KeepRatios(refreshing_gate(2))
    with torch.inference_mode():
        small()(clip(5, 64, 64), gate=ratios)
    assert all(ratio == 1.0 for site, ratio in ratios.ratios.items() if site.step % 2 == 0)
    assert any(ratio < 1.0 for site, ratio in ratios.ratios.items() if site.step % 2 == 1)


def test_a_call_leaves_nothing_behind() -> None:
    network = small()
    mirrored = clip(1, 66, 72, seed=3).repeat(1, 2, 1, 1, 1)
    plain = clip(3, 64, 72)
    with torch.inference_mode():
        alone = network(plain)
        network(mirrored)
        assert torch.equal(network(plain), alone)


def test_items_of_a_batch_do_not_see_each_other() -> None:
    network = small()
    frames = clip(3, 66, 72, items=2)
    with torch.inference_mode():
        together = network(frames)
        for item in range(2):
            torch.testing.assert_close(together[item], network(frames[item, None])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (33, 70), (64, 17)])
def test_small_frames_are_extended_and_cropped(height: int, width: int) -> None:
    with torch.inference_mode():
        output = small()(clip(2, height, width))
    assert output.shape == (1, 2, 3, 4 * height, 4 * width)
    assert output.isfinite().all()


def test_a_stretch_emits_the_frames_that_are_asked_for() -> None:
    network = small()
    frames = clip(4, 64, 66)
    with torch.inference_mode():
        whole = list(network.features(frames.unbind(1), range(4)))
        part = list(network.features(frames.unbind(1), range(1, 3), buffer=OffloadBuffer(0)))
        assert len(part) == 2
        assert torch.equal(part[0], whole[1])
        assert torch.equal(part[1], whole[2])
        upscaled = list(network.upscale(frames[0].unbind(0), range(1, 3)))
        torch.testing.assert_close(upscaled[1], network(frames)[0, 2], rtol=1e-5, atol=1e-5)


def test_features_are_released_as_the_next_pass_replaces_them() -> None:
    network = small()
    outputs: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def count(module: nn.Module, inputs: object, output: Tensor) -> None:
        outputs.append(weakref.ref(output))
        alive.append(sum(reference() is not None for reference in outputs))

    for module in network.patch_align.values():
        module.register_forward_hook(count)
    with torch.inference_mode():
        for _ in network.features(clip(5, 64, 64).unbind(1), range(5)):
            pass
    assert len(alive) == 4 * 5
    assert max(alive) <= 5 + 2


def test_planes_of_any_stride_and_type_receive_the_picture() -> None:
    network = small()
    frames = clip(1, 64, 66)
    with torch.inference_mode():
        features = next(network.features(frames.unbind(1), range(1)))
        expected = network.reconstruct(features, frames[:, 0])[0]
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 2e-3)):
            canvas = torch.full((3, 256, 300), 7.0, dtype=dtype)
            network.render(features, frames[:, 0], [plane[:, :264] for plane in canvas])
            torch.testing.assert_close(canvas[..., :264].float(), expected, rtol=0, atol=tolerance)
            assert (canvas[..., 264:] == 7).all()


def test_half_precision_keeps_flow_and_masks_in_single_precision() -> None:
    network = small()
    frames = clip(3, 64, 64)
    dtypes = set()

    def gate(site: MaskSite, logits: Tensor) -> Tensor:
        dtypes.add(logits.dtype)
        return injected("structured")(site, logits)

    with torch.inference_mode():
        exact = network(frames, gate=gate)
        halved = network.half()(frames.half(), gate=gate)
    assert halved.dtype == torch.float16
    assert dtypes == {torch.float32}
    assert {parameter.dtype for parameter in network.spynet.parameters()} == {torch.float32}
    assert (halved.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_training_reaches_the_mask_predictors_through_a_soft_gate() -> None:
    network = small().train().requires_grad_(True)

    def gate(site: MaskSite, logits: Tensor) -> Tensor:
        soft = torch.sigmoid(logits)
        return (soft >= 0.5).float() - soft.detach() + soft

    network(clip(3, 64, 64), gate=gate).square().mean().backward()
    for name, parameter in network.named_parameters():
        if "spynet" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    predictors = [p.grad for name, p in network.named_parameters() if name.endswith("predmask.rnn.weight")]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in predictors)


def test_files_in_the_official_layout_load(tmp_path: Path) -> None:
    network = small()
    path = tmp_path / "MIAVSR_REDS_x4.pth"
    torch.save({"params": official_state(network)}, path)
    loaded = load(path).network
    assert not loaded.training
    frames = clip(2, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(frames), network(frames))
        plain = small(use_mask=False)
        plain.load_state_dict(own_tensors(network.state_dict(), use_mask=False))
        assert torch.equal(load(path, use_mask=False).network(frames), plain(frames))


def _without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.pop(name)


def _broken_index(state: dict[str, Tensor]) -> object:
    name = "patch_align.forward_1.layers.0.residual_group.blocks.1.attn.relative_position_index"
    return state.update({name: state[name].flip(0)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without("conv_first.bias"), "conv_first.bias"),
        (_without("conv_before_upsample.weight"), "it lacks conv_before_upsample.weight"),
        (_broken_index, "relative_position_index is another index than that of the released networks"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra"),
        (
            lambda state: state.update({"upconv1.weight": torch.zeros(4, 8, 3, 3)}),
            "upconv1.weight has shape (4, 8, 3, 3), (32, 8, 3, 3) is expected",
        ),
        (lambda state: state.clear(), "it lacks patch_align.backward_1.layers"),
    ],
)
def test_files_of_another_network_are_refused_in_one_line(
    tmp_path: Path, spoil: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    state = official_state(small())
    spoil(state)
    path = tmp_path / "weights.pth"
    torch.save({"params": state}, path)
    with pytest.raises(UserError, match="is not a checkpoint of MIA-VSR") as caught:
        load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_without_predictors_want_masks_off(tmp_path: Path) -> None:
    network = small(use_mask=False)
    path = tmp_path / "IIAVSR.pth"
    torch.save({"params": official_state(network)}, path)
    with pytest.raises(UserError, match=r"holds no mask predictors; set mask=0$"):
        load(path)
    frames = clip(2, 64, 64)
    with torch.inference_mode():
        assert torch.equal(load(path, use_mask=False).network(frames), network(frames))


class Malicious(nn.Module):
    """Unpickling runs code."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return eval, ("1 / 0",)


def test_files_that_want_to_run_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"params": Malicious()}, path)
    with pytest.raises(UserError, match="is not a PyTorch checkpoint of tensors alone"):
        load(path)


def test_the_filter_gives_what_the_network_gives(tiny_mia: Path, bikes: vs.VideoNode) -> None:
    source = bikes[:12]
    frames = [torch.from_numpy(planes(frame)) for frame in source.frames()]
    cases: list[tuple[dict[str, int], bool, Gate]] = [
        ({}, True, threshold_gate),
        ({"mask": 0}, False, threshold_gate),
        ({"refresh": 2}, True, refreshing_gate(2)),
    ]
    pictures = []
    for arguments, use_mask, gate in cases:
        filtered = source.vsvsr.MIA(model_path=str(tiny_mia), device_index=-1, length=4, overlap=1, **arguments)
        with torch.inference_mode():
            # Frames 4 to 7 are a chunk, with one frame of context on both sides.
            expected = list(load(tiny_mia, use_mask=use_mask).network.upscale(frames[3:9], range(1, 5), gate=gate))
        for n in (4, 7):
            with filtered.get_frame(n) as frame:
                torch.testing.assert_close(torch.from_numpy(planes(frame)), expected[n - 4], rtol=1e-5, atol=1e-5)
        pictures.append(expected[-1])
    for one, other in itertools.combinations(pictures, 2):
        assert (one - other).abs().max() > 1e-3


def test_length_0_propagates_over_the_whole_clip(tiny_mia: Path, bikes: vs.VideoNode) -> None:
    mia = partial(bikes[:12].vsvsr.MIA, model_path=str(tiny_mia), device_index=-1)
    whole = play(mia(length=0), [7, 2])
    assert same(whole, play(mia(length=12)))
    assert play(mia(length=4), [2])[2] != whole[2]


def test_multi_frame_attention_is_its_definition_and_gives_the_last_frame_what_inter_and_intra_attention_gives() -> (
    None
):
    torch.manual_seed(0)
    attention = JointAttention(12, 3, 8).requires_grad_(False)
    attention.relative_position_bias_table.normal_()
    attention.proj.load_state_dict({"weight": torch.eye(12), "bias": torch.zeros(12)})
    tokens = torch.randn(2, 3, 19, 30, 12)
    for shift in (0, 4):
        joint = attention(tokens, shift)
        span = 15**2
        for frame in range(3):
            # Bias rows by the age of the key: of the frame before the query, of its own, of the one after it.
            index = torch.cat([relative_position_index(8)[:, 128:] + (frame - key + 2) * span for key in range(3)], 1)
            bias = attention.relative_position_bias_table[index].permute(2, 0, 1)
            # The operation asks from the last frame: keys come in another order, which changes nothing.
            order = [other for other in range(3) if other != frame] + [frame]
            keys = torch.cat([torch.arange(64) + 64 * other for other in order])
            expected = masked_window_attention(
                tokens[:, order], attention.qkv.weight, attention.qkv.bias, bias[..., keys], None, window=8, shift=shift
            )
            torch.testing.assert_close(joint[:, frame].flatten(0, 2), expected, rtol=0, atol=1e-5)


def test_the_networks_of_the_ablation_have_the_published_size() -> None:
    unused = 567_136
    counts = {}
    for name, options in {"MFSAB": (False, True), "IIAB": (False, False), "MIA": (True, False)}.items():
        with torch.device("meta"):
            network = MIAVSR(120, (6,), (6,), 64, (3, 8, 8), *options)
        counts[name] = unused + sum(parameter.numel() for parameter in network.parameters())
    # 6.41, 6.34 and 6.35 M.
    assert counts == {"MFSAB": 6_412_223, "IIAB": 6_347_423, "MIA": 6_350_327}


def test_a_network_of_multi_frame_attention_refines_earlier_frames_too_and_is_loaded_by_its_table(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    network = MIAVSR(12, (2, 1), (3, 2), 8, use_mask=False, multi_frame=True).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if "attn" in name:
            parameter.normal_(std=0.3)
    torch.save({"params": network.state_dict()}, tmp_path / "psrt.pth")
    loaded = load(tmp_path / "psrt.pth", use_mask=False).network
    frames = clip(3, 20, 27)
    with torch.inference_mode():
        assert torch.equal(loaded(frames), network(frames))
        stage = network.patch_align["backward_1"].layers[0]
        stack = torch.randn(1, 3, 16, 16, 12)
        assert (stage(stack) - stack).abs().amax(dim=(0, 2, 3, 4)).min() > 0.01
    with pytest.raises(UserError, match="holds no mask predictors; set mask=0"):
        load(tmp_path / "psrt.pth")
    with pytest.raises(ValueError, match="has no masks"):
        MIAVSR(12, (1,), (3,), 8, multi_frame=True)
