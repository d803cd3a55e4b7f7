"""Stable Diffusion 2.1-base as the single file that its makers published beside the folder (``v2-1_512-...``)."""

import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vsvsr import weights
from vsvsr.models.ultra.base import check_base
from vsvsr.models.ultra.network import FULL
from vsvsr.models.ultra.network import extra as import_extra

VOCABULARY = "clip-vocabulary"
"""Name in the manifest of what a single file lacks for a tokenizer."""
_UNET, _TEXT = "model.diffusion_model.", "cond_stage_model.model."
_BLOCK = re.compile(rf"{re.escape(_TEXT)}transformer\.resblocks\.(\d+)\.(.+)", re.ASCII)
_BLOCK_PARTS = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_TEXT_PARTS = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_NOT_NEEDED = re.compile(
    r"sqrt_\w+|log_\w+|posterior_\w+|alphas_\w+|betas|logvar|model_ema\..*|"
    rf"{re.escape(_TEXT)}(logit_scale|text_projection|attn_mask|transformer\.resblocks\.\d+\.attn\.in_proj_\w+)",
    re.ASCII,
)
"""Schedules, averages that were taken instead, what the text tower has besides its embeddings; and its projections,
which are stored in parts."""
_BYTES, _MERGES = 256, 48_894
"""Of the vocabulary: characters for bytes, and pairs that are joined, after a line of title."""
_HEAD = 64
"""Channels of each head of the text tower."""


def holds_single_file(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict looks like Stable Diffusion 2 as a single file."""
    return f"{_UNET}input_blocks.0.0.weight" in tensors and f"{_TEXT}token_embedding.weight" in tensors


def convert_single_file(tensors: Mapping[str, Tensor], path: Path, target: Path) -> list[str]:
    """Write the folder that `vsvsr.models.ultra.base.load_base` reads, and compare every tensor with the network's.

    Args:
        tensors: of the file.
        path: of the file, for messages.
        target: a folder to make.

    Returns:
        Names of entries that are not used.

    Raises:
        UserError: a tensor is missing or of another shape, or the vocabulary of CLIP is not installed.
    """
    vocabulary = weights.verify(VOCABULARY)
    library = import_extra("diffusers.loaders.single_file_utils")
    # Embeddings are taken before the last block.
    last = max((int(found[1]) for found in map(_BLOCK.match, tensors) if found), default=0)
    state = {
        name: value for name, value in tensors.items() if not name.startswith(f"{_TEXT}transformer.resblocks.{last}.")
    }
    averaged = any(name.startswith("model_ema.") for name in state)
    parts = {
        "unet": library.convert_ldm_unet_checkpoint(state, {"layers_per_block": 2, **FULL.unet}, extract_ema=averaged),
        "vae": library.convert_ldm_vae_checkpoint(state, FULL.vae),
        "text_encoder": _text_tensors(state),
    }
    settings = {"unet": FULL.unet, "vae": FULL.vae, "text_encoder": _text_settings(parts["text_encoder"], last)}
    used = set()
    for name, part in parts.items():
        (target / name).mkdir(parents=True)
        (target / name / "config.json").write_text(json.dumps(dict(settings[name])))
        file = "model.safetensors" if name == "text_encoder" else "diffusion_pytorch_model.safetensors"
        there = {key: value for key, value in part.items() if value is not None}
        used |= {value.data_ptr() for value in there.values()}
        save_file({key: value.contiguous() for key, value in there.items()}, target / name / file)
    (target / "scheduler").mkdir()
    (target / "scheduler/scheduler_config.json").write_text(json.dumps({"prediction_type": "epsilon"}))
    write_tokenizer(vocabulary, target / "tokenizer")
    check_base(target, shown_as=path)
    return [name for name, value in state.items() if value.data_ptr() not in used and not _NOT_NEEDED.fullmatch(name)]


def _text_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text tower with the names of transformers."""
    tensors = {new: state[_TEXT + old] for old, new in _TEXT_PARTS.items() if _TEXT + old in state}
    for name, value in state.items():
        found = _BLOCK.fullmatch(name)
        if found is None:
            continue
        layer, part = f"encoder.layers.{found[1]}", found[2]
        if part.startswith("attn.in_proj_"):
            for place, third in zip("qkv", value.chunk(3), strict=False):
                tensors[f"{layer}.self_attn.{place}_proj.{part.removeprefix('attn.in_proj_')}"] = third.clone()
            continue
        for old, new in {**_BLOCK_PARTS, "attn.out_proj": "self_attn.out_proj"}.items():
            part = part.replace(old, new, 1) if part.startswith(f"{old}.") else part
        tensors[f"{layer}.{part}"] = value
    return tensors


def _text_settings(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Any]:
    """Settings of the text tower, as far as its tensors tell them; the rest is that of Stable Diffusion 2."""
    vocabulary, width = tensors["embeddings.token_embedding.weight"].shape
    inner = tensors.get("encoder.layers.0.mlp.fc1.bias")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 4 * width if inner is None else len(inner),
        "num_hidden_layers": layers,
        "num_attention_heads": max(width // _HEAD, 1),
        "hidden_act": "gelu",
    }


def write_tokenizer(vocabulary: Path, folder: Path) -> None:
    """Write ``vocab.json`` and ``merges.txt`` of CLIP's byte pair encoding from its list of merges.

    Tokens are numbered: characters for the 256 bytes, the same at the end of a word, the merges in their order, start
    and end of a text.
    """
    lines = gzip.decompress(vocabulary.read_bytes()).decode("utf-8").split("\n")[1 : 1 + _MERGES]
    # Printable bytes stand for themselves, the others for characters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + place for place in range(_BYTES - len(printable))]
    characters = [chr(code) for code in (*printable, *others)]
    tokens = [
        *characters,
        *(f"{character}</w>" for character in characters),
        *("".join(line.split()) for line in lines),
    ]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    numbered = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(numbered, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n", encoding="utf-8")
