"""Files as the authors of UltraVSR and of Stable Diffusion publish them, with other values and tiny networks."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from vsvsr.models.ultra import TINY, UltraConfig, UltraVSR, build
from vsvsr.models.ultra.lora import factor_shapes, unet_targets, vae_targets


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


def write_base_folder(folder: Path, config: UltraConfig = TINY) -> None:
    """A folder laid out as Stable Diffusion 2.1-base."""
    torch.manual_seed(1)
    network = build(config)
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
