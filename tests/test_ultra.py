"""UltraVSR: the released temporal shift module, the one-step pipeline, and exact bounded-memory inference."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from vsvsr.errors import UserError
from vsvsr.models.ultra import FULL, TINY, RTSModule, UltraVSR, build, fix_colour
from vsvsr.models.ultra.files import (
    apply_checkpoint,
    encode_prompt,
    load_compact,
    load_released,
    save_compact,
)
from vsvsr.models.ultra.lora import LoRA, add_adapters, factor_shapes, merge_adapters, unet_targets, vae_targets
from vsvsr.models.ultra.network import run_whole, upscale_bicubic
from vsvsr.models.ultra.schedule import alphas_cumprod, clamp_degradation, one_step, timestep_of

DATA = Path(__file__).parent / "data"


def random_module(channels: int, seed: int = 0, **sizes: int) -> RTSModule:
    """A module whose zero-initialised layers are drawn too, so that frames do mix."""
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
    """The tiny network with all temporal shift modules at work."""
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


def released_state(network: UltraVSR, rank: int = 4) -> dict[str, Any]:
    """Random values in the layout of the released checkpoint."""
    unet, vae = unet_targets(network.unet), vae_targets(network.vae)
    state: dict[str, Any] = {
        "rank_unet": rank,
        "rank_vae": rank,
        "unet_lora_encoder_modules": unet["default_encoder"],
        "unet_lora_decoder_modules": unet["default_decoder"],
        "unet_lora_others_modules": unet["default_others"],
        "vae_lora_modules": vae["default_encoder"],
        "state_dict_unet": {
            "conv_in.base_layer.weight": torch.randn_like(network.unet.conv_in.weight),
            "conv_in.base_layer.bias": torch.randn_like(network.unet.conv_in.bias),
        },
        "state_dict_vae": {},
    }
    for part, targets, entries in (
        (network.unet, unet, state["state_dict_unet"]),
        (network.vae, vae, state["state_dict_vae"]),
    ):
        for adapter, names in targets.items():
            for name in names:
                for letter, shape in zip("AB", factor_shapes(part.get_submodule(name), rank), strict=True):
                    entries[f"{name}.lora_{letter}.{adapter}.weight"] = torch.randn(shape) * 0.1
    for prefix, modules, entries in (
        ("video_down_RTS_blocks", network.unet_down_rts, state["state_dict_unet"]),
        ("video_up_RTS_blocks", network.unet_up_rts, state["state_dict_unet"]),
        ("decoder.video_up_RTS_blocks", network.decoder_up_rts, state["state_dict_vae"]),
    ):
        entries.update({f"{prefix}.{name}": torch.randn_like(value) for name, value in modules.named_parameters()})
    return state


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as Stable Diffusion 2.1-base, with tiny networks."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(1)
    network = build(TINY)
    network.unet.save_pretrained(folder / "unet")
    network.vae.save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"prediction_type": "epsilon"}))
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>", "a", "b"]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    return folder


def test_a_released_checkpoint_loads_onto_a_base_folder(base_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(2)
    state = released_state(build(TINY))
    torch.save(state, tmp_path / "model.pkl")
    network = load_released(base_folder, tmp_path / "model.pkl", TINY)
    stock = type(network.unet).from_pretrained(base_folder / "unet", low_cpu_mem_usage=False)
    a, b = (state["state_dict_unet"][f"mid_block.attentions.0.proj_in.lora_{x}.default_others.weight"] for x in "AB")
    merged = stock.mid_block.attentions[0].proj_in.weight + 2 * b @ a
    assert torch.allclose(network.unet.mid_block.attentions[0].proj_in.weight, merged, atol=1e-6)
    a, b = (state["state_dict_unet"][f"conv_in.lora_{x}.default_encoder.weight"] for x in "AB")
    merged = state["state_dict_unet"]["conv_in.base_layer.weight"] + 2 * torch.einsum("or,rikl->oikl", b[..., 0, 0], a)
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


def test_a_checkpoint_that_does_not_fit_is_named_in_one_line(tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match="1 unknown entries in state_dict_vae of the checkpoint: stranger"):
        apply_checkpoint(network, {**state, "state_dict_vae": {**state["state_dict_vae"], "stranger": torch.ones(1)}})
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
    with pytest.raises(UserError, match="is refused"):
        load_released(base_folder, tmp_path / "model.pkl", TINY)
    assert not (tmp_path / "intruder-was-here").exists()


def test_what_is_missing_is_named_with_its_source(base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks unet/config\.json, .*; copy stable-diffusion-2-1-base"):
        load_released(tmp_path, tmp_path / "model.pkl")
    with pytest.raises(UserError, match=r"no checkpoint at .*model\.pkl; the authors link it at"):
        load_released(base_folder, tmp_path / "model.pkl")
    with pytest.raises(UserError, match=r"lacks text_encoder/config\.json"):
        encode_prompt(tmp_path, "")


def test_prompts_are_encoded_by_the_base_folders_text_tower(base_folder: Path) -> None:
    empty, prompt, again = (encode_prompt(base_folder, text) for text in ("", "a b", "a b"))
    assert empty.shape == (1, 77, 16)
    assert torch.equal(prompt, again)
    assert (empty - prompt).abs().max() > 1e-3


def test_a_compact_network_survives_its_file(tiny: UltraVSR, tmp_path: Path) -> None:
    save_compact(tiny, TINY, tmp_path / "compact.safetensors", {"recipe": "none"})
    loaded = load_compact(tmp_path / "compact.safetensors")
    latents = torch.randn(2, 4, 8, 8)
    assert torch.equal(run_whole(loaded.decoder_steps(), latents), run_whole(tiny.decoder_steps(), latents))
    with pytest.raises(UserError, match=r"no weights at .*nothing"):
        load_compact(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match="holds no network configuration"):
        load_compact(DATA / "rts_320.safetensors")
