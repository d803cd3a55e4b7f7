"""Files as the authors of UltraVSR and of Stable Diffusion publish them, with other values and tiny networks."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vsvsr.models.ultra import TINY, UltraConfig, UltraVSR, build
from vsvsr.models.ultra.lora import factor_shapes, unet_targets, vae_targets

if TYPE_CHECKING:  # the extra `ultra`, which tests of other filters do without
    from transformers import CLIPTextModel


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
    from transformers import CLIPTextConfig, CLIPTextModel

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


def single_file_state(network: UltraVSR, tower: "CLIPTextModel") -> dict[str, torch.Tensor]:
    """What Stable Diffusion's makers publish in one file: their names of a network and a text tower, and schedules.

    The text tower has a block more than is used, as theirs has.
    """
    state = {"betas": torch.zeros(1000), "alphas_cumprod": torch.zeros(1000), "logvar": torch.zeros(1000)}
    layers = network.unet.config.layers_per_block
    for name, value in network.unet.state_dict().items():
        state[f"model.diffusion_model.{_unet_name(name, layers)}"] = value
    for name, value in network.vae.state_dict().items():
        attention = ".attentions.0." in name and "norm" not in name and name.endswith("weight")
        state[f"first_stage_model.{_vae_name(name)}"] = value[:, :, None, None] if attention else value
    prefix = "cond_stage_model.model."
    text = {name.removeprefix("text_model."): value for name, value in tower.state_dict().items()}
    state[f"{prefix}token_embedding.weight"] = text["embeddings.token_embedding.weight"]
    state[f"{prefix}positional_embedding"] = text["embeddings.position_embedding.weight"]
    state[f"{prefix}text_projection"] = torch.zeros(16, 16)
    state[f"{prefix}logit_scale"] = torch.zeros(())
    for kind in ("weight", "bias"):
        state[f"{prefix}ln_final.{kind}"] = text[f"final_layer_norm.{kind}"]
        for layer in range(2):
            # The last block, which is not used, has the values of the first.
            theirs, ours = f"{prefix}transformer.resblocks.{layer}", "encoder.layers.0"
            projections = [text[f"{ours}.self_attn.{place}_proj.{kind}"] for place in "qkv"]
            state[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(projections)
            state[f"{theirs}.attn.out_proj.{kind}"] = text[f"{ours}.self_attn.out_proj.{kind}"]
            for old, new in {
                "ln_1": "layer_norm1",
                "ln_2": "layer_norm2",
                "mlp.c_fc": "mlp.fc1",
                "mlp.c_proj": "mlp.fc2",
            }.items():
                state[f"{theirs}.{old}.{kind}"] = text[f"{ours}.{new}.{kind}"]
    return state


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _unet_name(name: str, layers: int) -> str:
    """The makers' name of a tensor of the UNet."""
    head, _, rest = name.partition(".")
    if head in ("conv_in", "conv_norm_out", "conv_out"):
        return f"{ {'conv_in': 'input_blocks.0.0', 'conv_norm_out': 'out.0', 'conv_out': 'out.2'}[head] }.{rest}"
    if head == "time_embedding":
        return f"time_embed.{ {'linear_1': 0, 'linear_2': 2}[rest.split('.')[0]] }.{rest.split('.')[1]}"
    parts = rest.split(".")
    if head == "mid_block":
        kind, place, tail = parts[0], int(parts[1]), parts[2:]
        where = "middle_block.1" if kind == "attentions" else f"middle_block.{2 * place}"
    else:
        block, kind, place, tail = int(parts[0]), parts[1], int(parts[2]), parts[3:]
        first = block * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.op.{tail[-1]}"
        if kind == "upsamplers":
            # Behind the attention, where the block has one; the first has none.
            return f"output_blocks.{first + layers}.{2 if block else 1}.conv.{tail[-1]}"
        number = first + place + (1 if head == "down_blocks" else 0)
        side = "input_blocks" if head == "down_blocks" else "output_blocks"
        where = f"{side}.{number}.{1 if kind == 'attentions' else 0}"
    if kind == "resnets":
        tail = [_RESNET[tail[0]], *tail[1:]]
    return ".".join([where, *tail])


def _vae_name(name: str) -> str:
    """The makers' name of a tensor of the autoencoder."""
    for old, new in (
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
        ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
        ("mid_block.attentions.0.to_", "mid.attn_1."),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        (".resnets.", ".block."),
        ("down_blocks.", "down."),
    ):
        name = name.replace(old, new)
    if "up_blocks." in name:
        before, _, after = name.partition("up_blocks.")
        block, _, rest = after.partition(".")
        name = f"{before}up.{3 - int(block)}.{rest}"
    return name
