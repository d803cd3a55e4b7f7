"""UltraVSR: the released temporal shift module, the one-step pipeline, and exact bounded-memory inference."""

import csv
import itertools
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tests.ultra_files import released_state, write_base_folder
from vsvsr.engine.continued import ContinuedNetwork
from vsvsr.engine.planes import Frame
from vsvsr.errors import UserError
from vsvsr.models.common.offload import OffloadBuffer
from vsvsr.models.ultra import FULL, REACH, TINY, Restored, RTSModule, UltraVSR, Upscaler, build, fix_colour
from vsvsr.models.ultra.base import encode_prompt, tokenise
from vsvsr.models.ultra.checkpoints import apply_checkpoint, load, load_released, save
from vsvsr.models.ultra.clip_iqa import (
    PAIRS,
    AttentionPool,
    ClipIQA,
    load_clip_iqa,
    measure_degradation,
    sample_indices,
)
from vsvsr.models.ultra.lora import LoRA, add_adapters, factor_shapes, merge_adapters, unet_targets, vae_targets
from vsvsr.models.ultra.memory import waiting
from vsvsr.models.ultra.network import Step, run_whole, upscale_bicubic
from vsvsr.models.ultra.rts import TemporalUnit
from vsvsr.models.ultra.schedule import alphas_cumprod, clamp_degradation, one_step, timestep_of
from vsvsr.models.ultra.skips import Skips
from vsvsr.models.ultra.stream import Pipeline, TiledPipeline
from vsvsr.models.ultra.tiles import Tiles
from vsvsr.training.__main__ import main
from vsvsr.training.data.clips import Clips, Crops
from vsvsr.training.harness import Processes, train
from vsvsr.training.recipes.ultra import (
    Settings,
    TemporalDiscriminator,
    Ultra,
    add_noise,
    distillation_loss,
    predict_clean,
)
from vsvsr.weights import read_metadata

DATA = Path(__file__).parent / "data"


def random_module(channels: int, seed: int = 0, **sizes: int) -> RTSModule:
    """A module whose zero-initialised layers are random too, so that frames mix."""
    torch.manual_seed(seed)
    module = RTSModule(channels, **sizes)
    for last in (module.RTSConv.conv3, module.RTSAtten.project_out):
        torch.nn.init.normal_(last.weight, std=0.5)
    return module


def test_the_released_temporal_shift_module_gives_its_reference_output() -> None:
    golden = load_file(DATA / "rts_320.safetensors")
    module = RTSModule(320)
    module.load_state_dict({k.removeprefix("model."): v for k, v in golden.items() if k.startswith("model.")})
    with torch.inference_mode():
        after_conv_unit = module.RTSConv(golden["input"])
        output = module(golden["input"])
    assert (after_conv_unit - golden["after_conv_unit"]).abs().max() <= 1e-5
    assert (output - golden["output"]).abs().max() <= 1e-5
    assert (output - golden["input"]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("channels", "conv_unit", "attention_unit"),
    [
        (256, 17_496, 16_872),
        (320, 27_330, 31_448),
        (512, 75_684, 83_128),
        (640, 116_424, 124_328),
        (1280, 465_570, 535_608),
    ],
)
def test_the_units_have_the_published_number_of_parameters(channels: int, conv_unit: int, attention_unit: int) -> None:
    with torch.device("meta"):
        module = RTSModule(channels)
    assert [sum(p.numel() for p in unit.parameters()) for unit in module.units] == [conv_unit, attention_unit]


def test_a_fresh_module_is_the_identity_and_a_trained_one_reaches_two_frames() -> None:
    frames = torch.rand(9, 96, 4, 6)
    changed = frames.clone()
    changed[4] += 1.0
    assert torch.equal(RTSModule(96)(frames), frames)
    module = random_module(96)
    with torch.inference_mode():
        difference = (module(frames) - module(changed)).abs().amax(dim=(1, 2, 3))
    assert difference.nonzero().flatten().tolist() == [2, 3, 4, 5, 6]


def test_the_middle_third_of_the_shift_is_zero_in_the_released_form_only() -> None:
    before, current, after = torch.rand(3, 1, 6, 2, 2) + 1.0
    released = RTSModule(96).RTSConv.shift(before, current, after)
    assert torch.equal(released, torch.cat((before[:, :2], torch.zeros(1, 2, 2, 2), after[:, 4:]), dim=1))
    paper = RTSModule(96, form="paper").RTSConv.shift(before, current, after)
    assert torch.equal(paper, torch.cat((before[:, :2], current[:, 2:4], after[:, 4:]), dim=1))


@pytest.fixture(scope="module")
def full() -> UltraVSR:
    with torch.device("meta"):
        return build(FULL)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_full_network_has_the_published_number_of_parameters(full: UltraVSR) -> None:
    assert count(full.unet) == 865_910_724
    assert count(full.vae) == 83_653_863
    modules = [
        module
        for places in (full.unet_down_rts, full.unet_up_rts, full.decoder_up_rts)
        for module in places
        if isinstance(module, RTSModule)
    ]
    assert len(modules) == 12
    assert sum(count(module.RTSConv) for module in modules) == 2_832_576
    assert sum(count(module.RTSAtten) for module in modules) == 3_224_400


def test_the_adapters_of_the_full_network_have_the_published_number_of_parameters(full: UltraVSR) -> None:
    unet, vae = unet_targets(full.unet), vae_targets(full.vae)
    assert {adapter: len(names) for adapter, names in unet.items()} == {
        "default_encoder": 94,
        "default_decoder": 148,
        "default_others": 16,
    }
    assert {adapter: len(names) for adapter, names in vae.items()} == {"default_encoder": 32}
    numbers = [
        sum(int(np.prod(shape)) for shape in factor_shapes(network.get_submodule(name), 4))
        for network, targets in ((full.unet, unet), (full.vae, vae))
        for names in targets.values()
        for name in names
    ]
    assert sum(numbers) == 4_425_068


def test_the_schedule_maps_degradation_to_the_published_time_steps() -> None:
    assert [timestep_of(d / 10) for d in range(1, 10)] == [933, 791, 688, 601, 520, 441, 360, 270, 162]
    assert (timestep_of(clamp_degradation(0.0)), timestep_of(clamp_degradation(1.0))) == (999, 0)
    gains = [one_step(torch.zeros(1), -torch.ones(1), d).item() for d in (0.1, 0.5, 0.9)]
    assert gains == pytest.approx([9.950, 1.732, 0.484], abs=1e-3)
    # The same schedule as in the stock library.
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert torch.allclose(alphas_cumprod().float(), scheduler.alphas_cumprod, rtol=1e-4)


def test_one_step_undoes_the_noise_it_is_told() -> None:
    clean, noise = torch.randn(2, 1, 4, 8, 8)
    assert torch.allclose(one_step(0.3 * clean + (1 - 0.09) ** 0.5 * noise, noise, 0.3), clean, atol=1e-5)


def test_the_bicubic_enlargement_is_pillows() -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 20), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).convert("F").resize((80, 96), Image.Resampling.BICUBIC))
    frames = torch.from_numpy(image).float().expand(1, 3, -1, -1)
    assert torch.allclose(upscale_bicubic(frames)[0, 1], torch.from_numpy(expected.copy()), atol=1e-2)


def test_colour_fixes_leave_equal_images_and_remove_offsets() -> None:
    image = torch.rand(2, 3, 40, 56) * 0.5 + 0.2
    for method in ("wavelet", "adain", "none"):
        assert torch.allclose(fix_colour(image, image, method), image, atol=1e-6)
    offset = torch.tensor((0.1, -0.1, 0.05)).view(3, 1, 1)
    assert torch.allclose(fix_colour(image + offset, image, "wavelet"), image, atol=1e-6)
    assert torch.allclose(fix_colour(1.2 * image + offset, image, "adain"), image, atol=1e-3)
    assert fix_colour(image + 1.0, image, "none").max() == 1.0


def test_the_wavelet_fix_keeps_the_detail_of_the_output_and_the_colours_of_the_input() -> None:
    """Against five levels of the plain 3x3 kernel, summed differences as in the definition."""
    output, reference = torch.rand(2, 1, 3, 48, 40)
    kernel = torch.tensor((1.0, 2.0, 1.0))
    kernel = (kernel[:, None] * kernel / 16).expand(3, 1, 3, 3)

    def levels(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        high = torch.zeros_like(image)
        for level in range(5):
            padded = torch.nn.functional.pad(image, (2**level,) * 4, mode="replicate")
            low = torch.nn.functional.conv2d(padded, kernel, groups=3, dilation=2**level)
            high, image = high + image - low, low
        return high, image

    expected = (levels(output)[0] + levels(reference)[1]).clamp(0, 1)
    assert torch.allclose(fix_colour(output, reference, "wavelet"), expected, atol=1e-6)


def test_merged_adapters_give_the_unmerged_forward() -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, stride=2, padding=1), torch.nn.Flatten(2), torch.nn.Linear(16, 5)
    )
    x = torch.randn(2, 4, 8, 8)
    plain = layers(x)
    add_adapters(layers, {"all": ["0", "2"]}, rank=2)
    assert torch.equal(layers(x), plain)
    for layer in layers:
        if isinstance(layer, LoRA):
            torch.nn.init.normal_(layer.lora_B.weight)
    adapted = layers(x)
    merge_adapters(layers)
    assert not any(isinstance(layer, LoRA) for layer in layers)
    assert torch.allclose(layers(x), adapted, atol=1e-4)
    assert (adapted - plain).abs().max() > 1.0


@pytest.fixture(scope="module")
def tiny() -> UltraVSR:
    """The tiny network with all temporal shift modules active."""
    torch.manual_seed(0)
    network = build(TINY).requires_grad_(False)
    for module in network.modules():
        if isinstance(module, RTSModule):
            torch.nn.init.normal_(module.RTSConv.conv3.weight, std=0.5)
            torch.nn.init.normal_(module.RTSAtten.project_out.weight, std=0.5)
    return network


def test_fresh_temporal_shift_leaves_the_stock_networks_results() -> None:
    network = build(TINY)
    prompt = torch.randn(1, 5, 16)
    with torch.inference_mode():
        for size in ((8, 8), (9, 13)):
            latents = torch.randn(3, 4, *size)
            noise = network.unet(latents, 250, prompt.expand(3, -1, -1)).sample
            assert torch.allclose(run_whole(network.unet_steps(250, prompt), latents), noise, atol=1e-5)
            pictures = network.vae.decode(latents / 0.18215).sample
            assert torch.allclose(run_whole(network.decoder_steps(), latents), pictures, atol=1e-5)
        frames = torch.rand(2, 3, 32, 40)
        posterior = network.vae.encode(frames * 2 - 1).latent_dist
        assert torch.allclose(network.encode(frames), posterior.mean * 0.18215, atol=1e-6)


@pytest.mark.parametrize(("rank", "scale"), [(4, 2.0), (2, 4.0), (8, 1.0)])
def test_a_released_checkpoint_loads_onto_a_base_folder_with_the_scale_of_its_rank(
    base_folder: Path, tmp_path: Path, rank: int, scale: float
) -> None:
    torch.manual_seed(2)
    state = released_state(build(TINY), rank)
    torch.save(state, tmp_path / "model.pkl")
    network = load_released(tmp_path / "model.pkl", base_folder, TINY).network
    stock = type(network.unet).from_pretrained(base_folder / "unet", low_cpu_mem_usage=False)
    a, b = (state["state_dict_unet"][f"mid_block.attentions.0.proj_in.lora_{x}.default_others.weight"] for x in "AB")
    merged = stock.mid_block.attentions[0].proj_in.weight + scale * b @ a
    assert torch.allclose(network.unet.mid_block.attentions[0].proj_in.weight, merged, atol=1e-6)
    a, b = (state["state_dict_unet"][f"conv_in.lora_{x}.default_encoder.weight"] for x in "AB")
    merged = state["state_dict_unet"]["conv_in.base_layer.weight"] + scale * torch.einsum(
        "or,rikl->oikl", b[..., 0, 0], a
    )
    assert torch.allclose(network.unet.conv_in.weight, merged, atol=1e-6)
    loaded = network.decoder_up_rts.get_parameter("3.RTSAtten.temperature")
    assert torch.equal(loaded, state["state_dict_vae"]["decoder.video_up_RTS_blocks.3.RTSAtten.temperature"])
    assert torch.equal(network.unet.time_embedding.linear_1.weight, stock.time_embedding.linear_1.weight)


def test_a_full_size_checkpoint_fits_every_place(full: UltraVSR) -> None:
    with torch.device("meta"):
        state = released_state(full)
    assert sum(v.numel() for k, v in state["state_dict_unet"].items() if "lora" not in k and "RTS" not in k) == 11_840
    apply_checkpoint(full, state)
    with torch.device("meta"), pytest.raises(UserError, match=r"has shape .* is expected"):
        apply_checkpoint(full, {**released_state(full), "rank_unet": 8})


def test_a_checkpoint_that_does_not_fit_is_named_in_one_line(
    base_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = build(TINY)
    state = released_state(network)
    with pytest.raises(UserError, match=r"has shape \(4, 4, 3, 3\); \(8, 4, 3, 3\) is expected"):
        apply_checkpoint(network, {**state, "rank_unet": 8})
    with pytest.raises(UserError, match="lacks rank_vae; the authors link it at"):
        apply_checkpoint(network, {key: value for key, value in state.items() if key != "rank_vae"})
    entry = "video_up_RTS_blocks.1.RTSConv.conv1.weight"
    unet = {key: value for key, value in state["state_dict_unet"].items() if key != entry}
    with pytest.raises(UserError, match=f"lacks {entry} in state_dict_unet"):
        apply_checkpoint(network, {**state, "state_dict_unet": unet})
    strange = {**state, "state_dict_vae": {**state["state_dict_vae"], "stranger": torch.ones(1)}}
    assert apply_checkpoint(network, strange) == ["state_dict_vae.stranger"]
    torch.save(strange, tmp_path / "model.pkl")
    with caplog.at_level("WARNING"):
        accepted = load_released(tmp_path / "model.pkl", base_folder, TINY).network
    (warning,) = [record.message for record in caplog.records]
    assert warning.endswith("model.pkl: 1 entries are no part of it and not used (state_dict_vae.stranger)")
    assert not any("stranger" in name for name in accepted.state_dict())
    for rank in (0, -1, 1 << 40, 4.0):
        torch.save({**state, "rank_vae": rank}, tmp_path / "model.pkl")
        with pytest.raises(UserError, match=r"vae_lora_modules or rank_vae is no list of names or no number"):
            load_released(tmp_path / "model.pkl", base_folder, TINY)
    with pytest.raises(UserError, match=r"adapts mid_block\.nowhere, which the base model lacks"):
        apply_checkpoint(network, {**state, "unet_lora_others_modules": ["mid_block.nowhere"]})


class Intruder:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("intruder-was-here"),)


def test_a_pickle_with_code_in_it_is_refused(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"rank_unet": 4, "state_dict_unet": Intruder()}, tmp_path / "model.pkl")
    with pytest.raises(UserError, match=r"is not a PyTorch checkpoint of tensors alone.*; the authors link it at"):
        load_released(tmp_path / "model.pkl", base_folder, TINY)
    assert not (tmp_path / "intruder-was-here").exists()


def test_what_is_missing_is_named_with_its_source(base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks unet/config\.json, .*; give Stable Diffusion 2\.1-base"):
        load_released(tmp_path / "model.pkl", tmp_path)
    with pytest.raises(UserError, match=r"model\.pkl does not exist; the authors link it at"):
        load_released(tmp_path / "model.pkl", base_folder)
    with pytest.raises(UserError, match=r"lacks text_encoder/config\.json"):
        encode_prompt(tmp_path, "")


def test_prompts_are_encoded_by_the_base_folders_text_tower(base_folder: Path) -> None:
    empty, prompt, again = (encode_prompt(base_folder, text) for text in ("", "a b", "a b"))
    assert empty.shape == (1, 77, 16)
    assert torch.equal(prompt, again)
    assert (empty - prompt).abs().max() > 1e-3


def test_a_compact_network_survives_its_file(tiny: UltraVSR, tmp_path: Path) -> None:
    save(tiny, TINY, tmp_path / "compact.safetensors", {"recipe": "none"})
    loaded = load(tmp_path / "compact.safetensors").network
    latents = torch.randn(2, 4, 8, 8)
    assert torch.equal(run_whole(loaded.decoder_steps(), latents), run_whole(tiny.decoder_steps(), latents))
    with pytest.raises(UserError, match=r"nothing\.safetensors does not exist"):
        load(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match="holds no network configuration"):
        load(DATA / "rts_320.safetensors")


def test_the_judge_of_degradation_is_clip_rn50() -> None:
    with torch.device("meta"):
        judge = ClipIQA()
    # The position embedding of the attention pool, which the judge leaves out, has 50 x 2048.
    assert count(judge) + 50 * 2048 == 102_007_137


def test_the_judges_text_tower_is_the_stock_one() -> None:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=99,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=64,
        bos_token_id=97,
        eos_token_id=98,
    )
    stock = CLIPTextModelWithProjection(config).eval()
    judge = ClipIQA(layers=(1,), width=16, outputs=64, text_width=128, text_layers=2, vocabulary=99)
    state = judge.state_dict()
    theirs = {name.removeprefix("text_model."): value for name, value in stock.state_dict().items()}
    state["token_embedding.weight"] = theirs["embeddings.token_embedding.weight"]
    state["positional_embedding"] = theirs["embeddings.position_embedding.weight"]
    state["text_projection"] = theirs["text_projection.weight"].T
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names["attn.out_proj"] = "self_attn.out_proj"
    for kind in ("weight", "bias"):
        state[f"ln_final.{kind}"] = theirs[f"final_layer_norm.{kind}"]
        for layer in range(2):
            ours, other = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            for name, their in names.items():
                state[f"{ours}.{name}.{kind}"] = theirs[f"{other}.{their}.{kind}"]
            parts = [theirs[f"{other}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
            state[f"{ours}.attn.in_proj_{kind}"] = torch.cat(parts)
    judge.load_state_dict(state)
    tokens = torch.randint(0, 97, (3, 77))
    tokens[torch.arange(3), torch.tensor((5, 20, 76))] = 98
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(stock(tokens).text_embeds, dim=1)
        assert torch.allclose(judge.embed_text(tokens), expected, atol=1e-5)


def test_the_judges_attention_pool_is_multi_head_attention_with_the_mean_as_query() -> None:
    torch.manual_seed(0)
    pool, stock = AttentionPool(64, 4, 16), torch.nn.MultiheadAttention(64, 4, batch_first=True)
    for name, part in zip(("q_proj", "k_proj", "v_proj"), range(3), strict=True):
        for kind in ("weight", "bias"):
            stock.get_parameter(f"in_proj_{kind}").data[64 * part : 64 * part + 64] = pool.get_parameter(
                f"{name}.{kind}"
            )
    torch.nn.init.eye_(stock.out_proj.weight)
    x = torch.randn(2, 64, 3, 5)
    tokens = x.flatten(2).mT
    mean = tokens.mean(dim=1, keepdim=True)
    with torch.inference_mode():
        attended = stock(mean, torch.cat((mean, tokens), dim=1), torch.cat((mean, tokens), dim=1))[0][:, 0]
        assert torch.allclose(pool(x), pool.c_proj(attended), atol=1e-5)


def test_the_degradation_of_a_clip_is_the_mean_share_of_the_good_prompts(base_folder: Path) -> None:
    torch.manual_seed(0)
    judge = ClipIQA(layers=(1, 1), width=16, outputs=64, text_width=64, text_layers=1, vocabulary=6).eval()
    for parameter in judge.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tokens = tokenise(base_folder, [text for pair in PAIRS for text in pair])
    assert tokens.shape == (10, 77)
    tokens[1::2, 1] = 2
    frames = list(torch.rand(2, 3, 16, 20))
    with torch.inference_mode():
        text = judge.embed_text(tokens)
        shares = []
        for frame in frames:
            picture = (upscale_bicubic(frame[None]).clamp(0, 1) - judge.mean) / judge.std
            logits = judge.logit_scale.exp() * torch.nn.functional.normalize(judge.visual(picture), dim=1) @ text.T
            shares += [1 / (1 + (logits[0, i + 1] - logits[0, i]).exp()) for i in range(0, 10, 2)]
    assert measure_degradation(judge, tokens, frames) == pytest.approx(float(torch.stack(shares).mean()), abs=1e-5)
    assert 0.0 < float(torch.stack(shares).mean()) < 1.0
    assert [sample_indices(n) for n in (1, 3, 100)] == [[0], [0, 1, 2], [0, 25, 50, 74, 99]]


def test_other_weights_than_the_judges_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"clip\.safetensors does not exist; give CLIP RN50"):
        load_clip_iqa(tmp_path / "clip.safetensors")
    save_file({"visual.conv1.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "clip.safetensors")
    with pytest.raises(UserError, match=r"clip\.safetensors is not a checkpoint of CLIP RN50: .*; give CLIP RN50"):
        load_clip_iqa(tmp_path / "clip.safetensors")


PROMPT = torch.linspace(-1, 1, 5 * 16).view(1, 5, 16)


def layer_by_layer(steps: list[Step], frames: torch.Tensor) -> torch.Tensor:
    """The whole clip in memory, every block finished for all frames before the next one, as the released code does."""
    features = list(frames.split(1))
    skips = [Skips() for _ in features]
    for step in steps:
        if isinstance(step, TemporalUnit):
            reduced = [step.reduce(x) for x in features]
            zero = torch.zeros_like(reduced[0])
            padded = [zero, *reduced, zero]
            features = [step.combine(x, *padded[i : i + 3]) for i, x in enumerate(features)]
        else:
            features = [step(x, skip) for x, skip in zip(features, skips, strict=True)]
    return torch.cat(features)


def streamed(pipeline: Pipeline | TiledPipeline, frames: torch.Tensor) -> torch.Tensor:
    outputs = [output for frame in frames.split(1) if (output := pipeline.push(frame)) is not None]
    return torch.cat([*outputs, *pipeline.finish()])


@pytest.fixture(params=["unet", "decoder"])
def stage(request: pytest.FixtureRequest, tiny: UltraVSR) -> tuple[list[Step], int]:
    """Steps of a stage and its temporal reach."""
    return (tiny.unet_steps(250, PROMPT), 16) if request.param == "unet" else (tiny.decoder_steps(), 8)


def test_a_stream_gives_the_whole_clips_result_to_the_bit(stage: tuple[list[Step], int]) -> None:
    steps, _ = stage
    for length in (1, 2, 20):
        frames = torch.randn(length, 4, 3, 5)
        assert torch.equal(streamed(Pipeline(steps, OffloadBuffer()), frames), layer_by_layer(steps, frames))


def test_the_batch_form_agrees_with_frame_by_frame(stage: tuple[list[Step], int]) -> None:
    frames = torch.randn(4, 4, 8, 8)
    assert torch.allclose(run_whole(stage[0], frames), layer_by_layer(stage[0], frames), atol=1e-4)


def test_the_papers_form_is_what_its_equations_print() -> None:
    torch.manual_seed(0)
    module = RTSModule(96, form="paper")
    assert sorted(name for name, _ in module.named_parameters() if "temperature" in name) == []
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    frames = torch.randn(4, 96, 3, 5)
    zero = torch.zeros_like(frames[:1])
    with torch.inference_mode():
        conv, attention = module.RTSConv, module.RTSAtten
        reduced = torch.cat((conv.conv1(zero), conv.conv1(frames), conv.conv1(zero)))
        before, current, after = reduced[:-2], reduced[1:-1], reduced[2:]
        gathered = torch.cat((before[:, :3], current[:, 3:6], after[:, 6:]), dim=1)
        expected = frames + conv.conv3(torch.relu(conv.conv_blocks[0](gathered)))
        assert torch.allclose(conv(frames), expected, atol=1e-5)
        # One channel in each of eight heads.
        q, k, v = attention.qkv_dwconv(attention.qkv(expected)).flatten(2).chunk(3, dim=1)
        mixed = torch.zeros_like(v)
        for t in range(4):
            for other in (t - 1, t, t + 1):
                if 0 <= other < 4:
                    weights = (q[t, :, :, None] * k[other, :, None, :]).softmax(dim=-1)
                    mixed[t] += (weights @ v[other, :, :, None])[..., 0]
        expected = expected + attention.project_out(mixed.view(4, 8, 3, 5))
        assert torch.allclose(module(frames), expected, atol=1e-4)


def test_a_stage_reaches_exactly_as_far_as_its_modules(stage: tuple[list[Step], int]) -> None:
    steps, reach = stage
    frames = torch.randn(2 * reach + 5, 4, 2, 2)
    frames[reach + 2] = torch.nan
    touched = streamed(Pipeline(steps, OffloadBuffer()), frames).isnan().flatten(1).any(dim=1)
    assert touched.nonzero().flatten().tolist() == list(range(2, 2 * reach + 3))


def test_a_chunk_with_its_halo_gives_the_whole_clips_frames_to_the_bit(stage: tuple[list[Step], int]) -> None:
    steps, reach = stage
    frames = torch.randn(2 * reach + 12, 4, 2, 3)
    whole = layer_by_layer(steps, frames)
    for length in (1, 12):
        chunk = frames[6 : 6 + length + 2 * reach]
        result = streamed(Pipeline(steps, OffloadBuffer()), chunk)[reach : reach + length]
        assert torch.equal(result, whole[6 + reach : 6 + reach + length])


def test_what_waits_does_not_grow_with_the_clip_and_is_what_was_counted(stage: tuple[list[Step], int]) -> None:
    steps, _ = stage
    counted = waiting(steps, torch.zeros(1, 4, 4, 6)).stream
    peaks = []
    for length in (20, 40):
        buffer = OffloadBuffer()
        pipeline = Pipeline(steps, buffer)
        for _ in range(length):
            pipeline.push(torch.randn(1, 4, 4, 6))
        assert buffer.held == counted
        list(pipeline.finish())
        assert buffer.held == 0
        peaks.append(buffer.peak)
    assert peaks[0] == peaks[1] <= 1.2 * counted


@pytest.mark.parametrize(
    ("size", "skips", "running", "decoder"),
    [
        ((90, 160), 46.9, 9.2, (14.7, 59, 236, 472)),
        ((180, 320), 186.8, 36.9, (59, 236, 944, 1887)),
        ((96, 96), 29.9, 5.9, (9.4, 37.7, 151, 302)),
        ((64, 64), 13.3, 2.6, (4.2, 16.8, 67, 134)),
    ],
)
def test_the_full_networks_memory_is_the_published_one(
    full: UltraVSR, size: tuple[int, int], skips: float, running: float, decoder: tuple[float, ...]
) -> None:
    """Megabytes per frame in fp16; a stream keeps about 17 times the skip connections, however long the clip."""
    network = full.half()
    with torch.device("meta"):
        latents = torch.zeros(1, 4, *size, dtype=torch.half)
        steps = network.unet_steps(500, torch.zeros(1, 77, 1024, dtype=torch.half))
        unet, pictures = waiting(steps, latents), waiting(network.decoder_steps(), latents)
        assert callable(steps[0])
        assert steps[0](latents, Skips()).nbytes / 1e6 == pytest.approx(running, abs=0.05)
    assert unet.skips / 1e6 == pytest.approx(skips, abs=0.05)
    assert [count / 1e6 for count in pictures.inputs] == pytest.approx(decoder, rel=0.01)
    assert 14 * unet.skips < unet.stream < 17 * unet.skips


def test_a_byte_budget_is_kept_and_changes_no_pixel(stage: tuple[list[Step], int]) -> None:
    steps, _ = stage
    frames = torch.randn(20, 4, 4, 6)
    reduced = sum(2 * step.reduce(torch.zeros(1, *shape)).nbytes for step, shape in temporal_inputs(steps))
    free = OffloadBuffer()
    unlimited = streamed(Pipeline(steps, free), frames)
    budget = (free.peak - reduced) // 3
    tight = OffloadBuffer(budget)
    assert torch.equal(streamed(Pipeline(steps, tight), frames), unlimited)
    assert (free.offloaded, free.held, tight.held) == (0, 0, 0)
    assert tight.offloaded > 0
    assert tight.peak <= budget + reduced < free.peak


def temporal_inputs(steps: list[Step]) -> list[tuple[TemporalUnit, torch.Size]]:
    x, skips, found = torch.zeros(1, 4, 4, 6), Skips(), []
    for step in steps:
        if isinstance(step, TemporalUnit):
            found.append((step, x.shape[1:]))
        else:
            x = step(x, skips)
    return found


def test_tiles_cover_the_plane_and_blend_without_a_seam() -> None:
    for size in ((16, 24), (17, 40), (41, 33), (9, 100)):
        tiles = Tiles(*size, tile=(16, 16), overlap=8)
        plane = torch.rand(2, 3, *size)
        assert torch.allclose(tiles.blend(tiles.cut(plane)), plane, atol=1e-6)
        assert all(side <= 16 for tile in tiles.cut(plane) for side in tile.shape[-2:])
        enlarged = plane.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
        blended = tiles.blend([tile.repeat_interleave(8, 2).repeat_interleave(8, 3) for tile in tiles.cut(plane)], 8)
        assert torch.allclose(blended, enlarged, atol=1e-6)
    assert len(Tiles(16, 24, tile=(16, 16), overlap=8)) == 2
    # 1440 x 2560 pixels: equal tiles instead of some that overlap almost completely.
    large = Tiles(180, 320, tile=(96, 96), overlap=32)
    assert (len(large), large.size) == (15, (88, 96))
    assert len(Tiles(16, 16, tile=(16, 16), overlap=8)) == 1


def test_the_blending_weights_are_symmetric_and_favour_the_middle_of_a_tile() -> None:
    tiles = Tiles(1, 24, tile=(16, 16), overlap=8)
    left, right = torch.zeros(1, 1, 1, 16), torch.ones(1, 1, 1, 16)
    ramp = tiles.blend([left, right])[0, 0, 0]
    assert torch.equal(ramp[:8], torch.zeros(8))
    assert torch.equal(ramp[16:], torch.ones(8))
    assert torch.allclose(ramp + ramp.flip(0), torch.ones(24), atol=1e-6)
    assert (ramp[8:16].diff() > 0).all()


def test_tiles_change_nothing_where_pixels_do_not_mix() -> None:
    torch.manual_seed(0)
    module = random_module(96)
    unit = module.RTSConv
    for name, parameter in unit.named_parameters():
        if name.startswith("conv_blocks.0.weight"):
            parameter.data[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0.0
    steps: list[Step] = [lambda x, skips: x * 2.0, unit.requires_grad_(False)]
    frames = torch.rand(5, 96, 20, 28)
    tiled = TiledPipeline(steps, Tiles(20, 28, tile=(16, 16), overlap=8), 1, OffloadBuffer())
    assert torch.allclose(streamed(tiled, frames), layer_by_layer(steps, frames), atol=1e-5)


def upscaler(network: UltraVSR, **settings: Any) -> Upscaler:
    return Upscaler(network, degradation=0.4, prompt=PROMPT, **settings)


def as_read(frames: Iterable[torch.Tensor]) -> list[Frame]:
    return [Frame(frame[None], torch.zeros(1, dtype=torch.bool)) for frame in frames]


def continued(model: Upscaler) -> ContinuedNetwork[Restored]:
    network = ContinuedNetwork[Restored](torch.device("cpu"), torch.float32)
    network.model = model
    return network


def rendered(
    settings: Upscaler | ContinuedNetwork[Restored], frames: torch.Tensor, emit: range, first: int = 0
) -> torch.Tensor:
    """The frames of one call, which reads none beyond the last, written into strided views of one buffer."""
    network = continued(settings) if isinstance(settings, Upscaler) else settings
    pictures = []
    for restored in itertools.islice(network.run(as_read(frames), emit, first), len(emit)):
        buffer = torch.full((3, frames.shape[-2] * 4, frames.shape[-1] * 4 + 7), torch.nan)
        network.model.render(restored.result, buffer[..., : frames.shape[-1] * 4].unbind(0))
        assert buffer[..., frames.shape[-1] * 4 :].isnan().all()
        pictures.append(buffer[..., : frames.shape[-1] * 4])
    return torch.stack(pictures)


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    return torch.rand(52, 3, 4, 5, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def whole(tiny: UltraVSR, clip: torch.Tensor) -> torch.Tensor:
    """The clip restored in one call."""
    return rendered(upscaler(tiny), clip, range(52))


def chunk_of(
    settings: Upscaler | ContinuedNetwork[Restored], clip: torch.Tensor, start: int, stop: int, *, reach: int = REACH
) -> torch.Tensor:
    first, last = max(start - reach, 0), min(stop + reach, len(clip))
    return rendered(settings, clip[first:last], range(start - first, stop - first), first)


def test_frames_of_any_size_come_out_four_times_larger_in_range(tiny: UltraVSR) -> None:
    for height, width in ((16, 16), (17, 19), (6, 5)):
        result = rendered(upscaler(tiny), torch.rand(2, 3, height, width), range(2))
        assert result.shape == (2, 3, 4 * height, 4 * width)
        assert result.min() >= 0.0
        assert result.max() <= 1.0


def test_the_upscaler_runs_the_steps_of_the_definition(tiny: UltraVSR) -> None:
    frames = torch.rand(3, 3, 8, 10)
    large = upscale_bicubic(frames)
    latents = torch.cat([tiny.encode(frame) for frame in large.split(1)])
    noise = layer_by_layer(tiny.unet_steps(601, PROMPT), latents)
    pictures = layer_by_layer(tiny.decoder_steps(), one_step(latents, noise, 0.4)).clamp(-1, 1)
    expected = fix_colour((pictures + 1) / 2, large, "wavelet")
    assert torch.allclose(rendered(upscaler(tiny), frames, range(3)), expected, atol=1e-5)


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (25, 26), (26, 39), (46, 52)])
def test_a_chunk_with_full_context_gives_the_pixels_of_the_whole_clip(
    tiny: UltraVSR, clip: torch.Tensor, whole: torch.Tensor, start: int, stop: int
) -> None:
    assert torch.equal(chunk_of(upscaler(tiny), clip, start, stop), whole[start:stop])


def test_playback_in_chunks_sees_each_frame_once_and_seeks_give_the_same_pixels(
    tiny: UltraVSR, clip: torch.Tensor, whole: torch.Tensor
) -> None:
    settings = upscaler(tiny)
    network = continued(settings)
    played = [chunk_of(network, clip, start, start + 13) for start in range(0, 52, 13)]
    assert torch.equal(torch.cat(played), whole)
    assert settings.frames_seen == 52
    for start in (26, 13):
        assert torch.equal(chunk_of(network, clip, start, start + 13), whole[start : start + 13])
    assert settings.frames_seen == 52 + 50 + 50


def test_after_a_failure_nothing_of_the_former_stretch_is_gone_on_with(tiny: UltraVSR, clip: torch.Tensor) -> None:
    network, changed = continued(upscaler(tiny)), clip.clone()
    changed[:13] = 0.5
    chunk_of(network, changed, 0, 13)
    network.forget()
    assert torch.equal(chunk_of(network, clip, 13, 26), chunk_of(upscaler(tiny), clip, 13, 26))


def test_less_context_is_nearly_the_same_and_still_independent_of_the_order(
    tiny: UltraVSR, clip: torch.Tensor, whole: torch.Tensor
) -> None:
    network = continued(upscaler(tiny))
    played = [chunk_of(network, clip, start, start + 5, reach=3) for start in (0, 5, 10)]
    for place in (2, 1, 0):
        assert torch.equal(chunk_of(network, clip, 5 * place, 5 * place + 5, reach=3), played[place])
    assert 0 < (torch.cat(played) - whole[:15]).abs().max() < 0.5


def test_tiles_and_a_budget_work_in_the_whole_pipeline(tiny: UltraVSR) -> None:
    frames = torch.rand(4, 3, 16, 21)
    tiled = rendered(upscaler(tiny, tile=(16, 16)), torch.cat((frames, frames), dim=3), range(4))
    assert tiled.shape == (4, 3, 64, 168)
    within = rendered(upscaler(tiny, tile=(16, 16), budget=100_000), torch.cat((frames, frames), dim=3), range(4))
    assert torch.equal(tiled, within)
    one_tile, none = (rendered(upscaler(tiny, tile=tile), frames, range(4)) for tile in ((96, 96), (0, 0)))
    assert torch.equal(one_tile, none)


def test_settings_out_of_range_are_named_with_what_is_allowed(tiny: UltraVSR) -> None:
    with pytest.raises(UserError, match=r"degradation is 1\.5; give a number from 0 \(ruined\) to 1 \(clean\)"):
        Upscaler(tiny, degradation=1.5, prompt=PROMPT)
    with pytest.raises(UserError, match=r"tile is \(20, 16\); give multiples of 8"):
        upscaler(tiny, tile=(20, 16))


def test_a_missing_extra_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r'diffusers is not installed; install it with: pip install "vsvsr\[ultra\]"'):
        build(TINY)


def test_distillation_moves_clips_and_their_changes_to_what_is_real() -> None:
    """With a regulariser that knows the generator's clips exactly; the sign that the paper prints moves them away."""
    torch.manual_seed(0)
    real = torch.randn(1, 4, 8, 8).expand(6, -1, -1, -1)
    for sign, closer in ((1.0, True), (-1.0, False)):
        latents = real + torch.randn(6, 4, 8, 8)
        error, change = (latents - real).abs().mean(), latents.diff(dim=0).abs().mean()
        for _ in range(20):
            latents.requires_grad_(True)
            fake = latents.detach()
            ends = (real, fake) if sign > 0 else (fake + (fake - real), fake)
            loss = distillation_loss(latents, *ends, 0.5)
            (gradient,) = torch.autograd.grad(loss, latents)
            latents = (latents - 100.0 * gradient).detach()
        assert ((latents - real).abs().mean() < 0.9 * error) == closer
        assert (latents.diff(dim=0).abs().mean() < 0.9 * change) == closer


def test_clean_latents_are_found_again_from_their_noise() -> None:
    clean, noise = torch.randn(2, 3, 4, 4, 4)
    for timestep in (20, 500, 979):
        assert torch.allclose(predict_clean(add_noise(clean, noise, timestep), noise, timestep), clean, atol=1e-4)


def test_the_discriminator_judges_patches_of_a_clip_over_time() -> None:
    discriminator = TemporalDiscriminator()
    convolutions = [module for module in discriminator.modules() if isinstance(module, torch.nn.Conv3d)]
    assert [(conv.in_channels, conv.out_channels) for conv in convolutions] == [
        (3, 64),
        (64, 128),
        (128, 256),
        (256, 256),
        (256, 256),
        (256, 256),
    ]
    assert [torch.nn.utils.parametrize.is_parametrized(conv) for conv in convolutions] == [True] * 5 + [False]
    logits = TemporalDiscriminator(8)(torch.rand(1, 3, 6, 64, 96))
    assert logits.shape == (1, 32, 6, 1, 2)


def crops(folder: Path) -> Crops:
    """Crops of one clip of noise."""
    rng = np.random.default_rng(0)
    (folder / "00000").mkdir(parents=True)
    np.save(folder / "00000/lr.npy", rng.integers(0, 256, (4, 10, 10, 3), dtype=np.uint8))
    np.save(folder / "00000/gt.npy", rng.integers(0, 256, (4, 40, 40, 3), dtype=np.uint8))
    (folder / "00000/clip.json").write_text('{"scale": 4}')
    return Crops(Clips(folder, scale=4), frames=2, crop=8)


def recipe(noise: Crops, run: Path, negative: torch.Tensor | None = None, **values: Any) -> Ultra:
    torch.manual_seed(0)
    settings = Settings(
        data=Path(), validation=Path(), run=run, frames=2, crop=8, discriminator_width=4, validation_crops=1, **values
    )
    return Ultra(build(TINY), settings, training=noise, validation=noise, prompt=PROMPT, negative=negative)


Trained = tuple[Ultra, dict[str, torch.Tensor], list[dict[str, float]], torch.Tensor]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A recipe after some steps on one clip with one noise, its first weights, its losses, and the clip's frames."""
    folder = tmp_path_factory.mktemp("ultra")
    trainer = recipe(crops(folder / "clips"), folder / "run", negative=-PROMPT, learning_rate=2e-3)
    before = {name: value.clone() for name, value in trainer.generator.state_dict().items()}
    frames = torch.rand(3, 3, 8, 8)
    truth = upscale_bicubic(frames).clamp(0, 1)
    losses = [trainer.update(frames, truth, torch.Generator().manual_seed(0)) for _ in range(12)]
    return trainer, before, losses, frames


def excited(trainer: Ultra) -> Ultra:
    """The recipe with nothing at zero: fresh adapters and shifts keep gradients from what lies before them."""
    torch.manual_seed(1)
    for network in (trainer.generator, trainer.fake, trainer.real):
        for name, parameter in network.named_parameters():
            if parameter.requires_grad and ("rts" in name or "lora" in name):
                torch.nn.init.normal_(parameter, std=0.1)
    return trainer


def reached(module: torch.nn.Module, loss: torch.Tensor) -> set[str]:
    """Names of the trainable tensors that a loss moves."""
    names, parameters = zip(*((n, p) for n, p in module.named_parameters() if p.requires_grad), strict=True)
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(names, gradients, strict=True)
    return {name for name, gradient in pairs if gradient is not None and bool(gradient.any())}


def trainable(module: torch.nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("form", ["released", "paper"])
def test_every_loss_reaches_every_tensor_that_it_shall_train(tmp_path: Path, form: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(globals(), "TINY", replace(TINY, rts_form=form))
    trainer = excited(recipe(crops(tmp_path), tmp_path / "run", negative=-PROMPT))
    trainer.perceptual = lambda pictures, truth: (pictures - truth).abs().mean()  # type: ignore[assignment]
    # 1x2 tokens at the coarsest level: attention on a single one has no gradient.
    frames = torch.rand(2, 3, 8, 32)
    rng = torch.Generator().manual_seed(0)
    truth = upscale_bicubic(frames).clamp(0, 1)
    losses, pictures, latents = trainer.losses(frames, truth, rng)
    critic = trainer.discriminator
    # While both clips lie within the margins, what they want of the last bias cancels.
    assert reached(critic, trainer._judgement(pictures, truth)) == trainable(critic) - {"layers.10.bias"}
    critic.get_parameter("layers.10.bias").data.fill_(2.0)
    assert reached(critic, trainer._judgement(pictures, truth)) == trainable(critic)
    critic.get_parameter("layers.10.bias").data.fill_(0.0)
    wanted = trainable(trainer.generator)
    # Nine tensors in each module, the temperature of the released form included.
    assert sum(name.startswith("decoder_up_rts") for name in wanted) == (4 * 9 if form == "released" else 4 * 8)
    for name in ("mse", "perceptual", "distillation", "gan"):
        assert reached(trainer.generator, losses[name]) == wanted, name
    for network in (trainer.fake, trainer.real):
        # The decoder's shift has no part in regularisers.
        wanted = trainable(network)
        assert wanted
        assert not any(name.startswith("decoder") for name in wanted)
        seen: set[str] = set()
        for _ in range(2):
            seen |= reached(network, trainer._denoising(network, latents.detach(), rng))
        assert seen == wanted


def test_the_distillation_sees_the_pictures_and_not_what_the_unet_has_made(tmp_path: Path) -> None:
    trainer = excited(recipe(crops(tmp_path), tmp_path / "run"))
    frames = torch.rand(3, 3, 8, 8)
    rng = torch.Generator().manual_seed(0)
    _, pictures, latents = trainer.losses(frames, upscale_bicubic(frames), rng)
    with torch.no_grad():
        assert torch.allclose(latents, trainer.real.encode((pictures + 1) / 2), atol=1e-6)
    assert not any(parameter.requires_grad for parameter in trainer.real.vae.parameters())


def test_noise_is_made_where_the_network_is(tmp_path: Path) -> None:
    trainer = recipe(crops(tmp_path), tmp_path / "run", negative=-PROMPT)
    for network in (trainer.real, trainer.fake):
        network.to("meta")
    trainer.prompt, trainer.negative = PROMPT.to("meta"), PROMPT.to("meta")
    latents, rng = torch.zeros(3, 4, 4, 4, device="meta"), torch.Generator().manual_seed(0)
    assert trainer._denoising(trainer.real, latents, rng).is_meta
    assert trainer._distillation(latents, rng).is_meta


@pytest.mark.parametrize(
    ("variant", "shift", "timestep"),
    [("A", set(), 999), ("B", set(), 270), ("C", {"RTSConv"}, 270), ("D", {"RTSConv", "RTSAtten"}, 270)],
)
def test_the_variants_of_the_ablation_train_what_the_paper_says(
    tmp_path: Path, variant: Any, shift: set[str], timestep: int
) -> None:
    trainer = recipe(crops(tmp_path), tmp_path / "run", variant=variant)
    names = trainable(trainer.generator)
    assert {part for name in names for part in name.split(".") if part.startswith("RTS")} == shift
    assert any("lora" in name for name in names)
    assert timestep_of(trainer.degradation_of(torch.rand(2, 3, 8, 8))) == timestep
    assert not trainable(trainer.real)
    assert all("lora" in name for name in trainable(trainer.fake))
    told = trainer.step(0)
    assert "real" not in told
    assert np.isfinite(list(told.values())).all()


def test_d_is_measured_on_each_clip_where_something_measures_it(tmp_path: Path) -> None:
    trainer = recipe(crops(tmp_path), tmp_path / "run")
    trainer._measure = lambda frames: float(frames.mean())
    assert trainer.degradation_of(torch.full((2, 3, 8, 8), 0.25)) == pytest.approx(0.25)
    dark, light = (trainer.generate(torch.full((2, 3, 8, 8), value)) for value in (0.3, 0.6))
    trainer._measure = lambda frames: 0.3
    assert torch.allclose(trainer.generate(torch.full((2, 3, 8, 8), 0.3)), dark, atol=1e-5)
    assert not torch.allclose(trainer.generate(torch.full((2, 3, 8, 8), 0.6)), light, atol=1e-3)


def test_recomputed_activations_give_the_same_gradients(tmp_path: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        trainer = excited(recipe(crops(tmp_path / str(checkpointing)), tmp_path, checkpointing=checkpointing))
        frames, rng = torch.linspace(0, 1, 576).view(3, 3, 8, 8), torch.Generator().manual_seed(0)
        losses, _, _ = trainer.losses(frames, upscale_bicubic(frames), rng)
        parameters = [parameter for parameter in trainer.generator.parameters() if parameter.requires_grad]
        gradients.append(torch.autograd.grad(losses["mse"] + losses["distillation"], parameters))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-3, atol=1e-6)


NARROW = replace(
    FULL,
    unet={**TINY.unet, "block_out_channels": (96,) * 4, "attention_head_dim": 8, "norm_num_groups": 8},
    vae={**TINY.vae, "block_out_channels": (96,) * 4, "norm_num_groups": 8},
)
"""Stable Diffusion's classes with as few channels as the released rule for the shift's sizes allows."""


def test_the_full_size_command_adapts_a_base_folder_and_exports_the_authors_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    write_base_folder(base, NARROW)
    clips = tmp_path / "clips"
    crops(clips)
    judge = ClipIQA(layers=(1, 1), width=16, outputs=64, text_width=64, text_layers=1, vocabulary=6)
    monkeypatch.setattr("vsvsr.training.recipes.ultra.load_clip_iqa", lambda path: judge.eval().requires_grad_(False))
    command = ["ultra", str(clips), str(clips), str(tmp_path / "run"), "--base", str(base), "--clip-iqa", str(base)]
    command += ["--prompt", "a b", "--negative", "b", "--bf16", "--checkpointing", "--learning-rate", "1e-3"]
    command += ["--frames", "2", "--crop", "8", "--discriminator-width", "4", "--validation-crops", "1", "--steps"]
    assert main([*command, "2"]) == 0
    with (tmp_path / "run/log.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert all(np.isfinite(float(row[name])) for name in ("mse", "distillation", "gan", "fake", "real", "psnr"))
    exported = tmp_path / "run/last.safetensors"
    network = load(exported, base).network
    state = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["recipe"]["generator"]
    layer = "unet.mid_block.attentions.0.proj_in"
    merged = state[f"{layer}.base_layer.weight"] + 2 * state[f"{layer}.lora_B.weight"] @ state[f"{layer}.lora_A.weight"]
    assert state[f"{layer}.lora_B.weight"].any()
    assert torch.allclose(network.get_parameter(f"{layer}.weight"), merged, atol=1e-6)
    for name in ("decoder_up_rts.2.RTSConv.conv3.weight", "unet_down_rts.0.RTSAtten.project_out.weight"):
        assert state[name].any()
        assert torch.equal(network.get_parameter(name), state[name])
    command_line = read_metadata(exported)["command"]
    assert "--base" in command_line
    assert "--bf16" in command_line
    assert main(["ultra", str(clips), str(clips), str(tmp_path / "x"), "--crop", "8", "--clip-iqa", str(base)]) == 1
    command[3] = str(tmp_path / "paper")
    assert main([*command, "1", "--rts-form", "paper"]) == 0
    assert load(tmp_path / "paper/last.safetensors", base).network.rts_form == "paper"


def test_training_changes_adapters_first_convolution_and_temporal_shift_alone(trained: Trained) -> None:
    trainer, before, _, _ = trained
    changed = {name for name, value in trainer.generator.state_dict().items() if not torch.equal(value, before[name])}
    assert all("lora_" in name or "rts" in name or name.startswith("unet.conv_in.base_layer.") for name in changed)
    for part in ("unet.down_blocks", "unet.mid_block", "unet.up_blocks", "unet.conv_in.base_layer", "vae.encoder"):
        assert any(name.startswith(part) for name in changed), part
    for part in ("unet_down_rts.3", "unet_up_rts.0", "decoder_up_rts.2"):
        assert any(name.startswith(part) for name in changed), part
    assert not any(name.startswith("vae.decoder") for name in changed)


def test_training_fits_a_clip_and_reports_every_loss(trained: Trained) -> None:
    losses = trained[2]
    assert losses[0].keys() == {"loss", "mse", "distillation", "gan", "discriminator", "fake", "real"}
    # The other two are played against networks that learn too.
    for name in ("mse", "discriminator", "fake", "real"):
        assert losses[-1][name] < losses[0][name], name


def test_the_finished_generator_gives_the_pictures_of_the_trained_one(trained: Trained) -> None:
    trainer, _, _, frames = trained
    finished = trainer.finished()
    assert not any(isinstance(module, LoRA) for module in finished.modules())
    with torch.inference_mode():
        pictures = trainer.generate(frames)
        network = continued(Upscaler(finished, degradation=0.8, prompt=PROMPT))
        restored = network.run(as_read(frames), range(3), 0)
        result = torch.cat([frame.result.picture for frame in restored])
    assert torch.allclose(result, (pictures.clamp(-1, 1) + 1) / 2, atol=1e-4)


def test_interrupted_training_ends_with_the_weights_of_uninterrupted_training(tmp_path: Path) -> None:
    noise = crops(tmp_path / "clips")
    results = []
    for parts in ((2,), (1, 2)):
        run = tmp_path / str(len(parts))
        for steps in parts:
            trainer = recipe(noise, run, save_minutes=0.0)
            train(trainer, trainer.settings, steps=steps, processes=Processes(torch.device("cpu")))
        with (run / "log.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            del row["seconds"], row["lr_pixels_per_second"]
        results.append((trainer.finished().state_dict(), rows))
    (once, log), (twice, log_of_parts) = results
    assert all(torch.equal(once[name], twice[name]) for name in once)
    assert log == log_of_parts
    assert {"step", "loss", "mse", "distillation", "gan", "discriminator", "fake", "real", "psnr"} <= log[0].keys()
    assert [row["step"] for row in log] == ["1", "2"]
