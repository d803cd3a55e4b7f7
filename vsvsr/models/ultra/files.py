"""UltraVSR on disk: the Stable Diffusion base folder, the released checkpoint, and our own compact networks."""

import json
import os
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vsvsr.errors import UserError
from vsvsr.models.ultra.lora import Layer, factor_shapes, merge
from vsvsr.models.ultra.network import FULL, UltraConfig, UltraVSR, build, extra

StrPath = str | os.PathLike[str]

_BASE_SOURCE = (
    "give Stable Diffusion 2.1-base as diffusers has it (tokenizer, text_encoder, scheduler, vae, unet), published as "
    "stabilityai/stable-diffusion-2-1-base and withdrawn in 2025; copies exist"
)
_CHECKPOINT_SOURCE = "the authors link it at github.com/yongliuy/UltraVSR (model_UltraVSR.pkl)"
_BASE_FILES = {
    "unet": ("unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
    "vae": ("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
    "scheduler": ("scheduler/scheduler_config.json",),
    "text_encoder": ("text_encoder/config.json", "text_encoder/model.safetensors"),
    "tokenizer": ("tokenizer/vocab.json", "tokenizer/merges.txt"),
}


def load_released(base: StrPath, checkpoint: StrPath, config: UltraConfig = FULL) -> UltraVSR:
    """The released network, adapters merged, in fp32 on the CPU.

    Args:
        base: local folder of Stable Diffusion 2.1-base; nothing is downloaded.
        checkpoint: the authors' file.
        config: sizes of the temporal shift modules; the networks' own come from the folder.

    Raises:
        UserError: something is missing or does not fit.
    """
    folder = _base_folder(base, "unet", "vae", "scheduler")
    state = _read_checkpoint(checkpoint)
    schedule = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    if schedule.get("prediction_type", "epsilon") != "epsilon":
        raise UserError(
            f"Ultra: {folder} predicts {schedule['prediction_type']}; give Stable Diffusion 2.1-base, which predicts "
            "epsilon (2.1 itself does not)"
        )
    diffusers = extra("diffusers")
    unet, vae = (
        kind.from_pretrained(folder / part, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False)
        for kind, part in ((diffusers.UNet2DConditionModel, "unet"), (diffusers.AutoencoderKL, "vae"))
    )
    network = UltraVSR(unet, vae, config)
    apply_checkpoint(network, state)
    return network.eval().requires_grad_(False)


def encode_prompt(base: StrPath, prompt: str) -> Tensor:
    """Text embedding ``(1, 77, width)`` in fp32, by the text tower of the base folder."""
    folder = _base_folder(base, "text_encoder", "tokenizer")
    tower = extra("transformers").CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True).float()
    with torch.inference_mode():
        return tower(tokenise(folder, [prompt]))[0]  # type: ignore[no-any-return]


def tokenise(base: StrPath, texts: list[str]) -> Tensor:
    """Token ids ``(n, 77)`` by the tokenizer of the base folder; longer texts are cut."""
    folder = _base_folder(base, "tokenizer") / "tokenizer"
    tokenizer = extra("transformers").CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    tokens = tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return tokens.input_ids  # type: ignore[no-any-return]


def _base_folder(base: StrPath, *parts: str) -> Path:
    folder = Path(base)
    missing = [name for part in parts for name in _BASE_FILES[part] if not (folder / name).is_file()]
    if missing:
        raise UserError(f"Ultra: the base model folder {folder} lacks {', '.join(missing)}; {_BASE_SOURCE}")
    return folder


def _read_checkpoint(path: StrPath) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"Ultra: no checkpoint at {path}; {_CHECKPOINT_SOURCE}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        raise UserError(
            f"Ultra: {path} is refused: it is damaged, or holds more than tensors, numbers and names; "
            f"{_CHECKPOINT_SOURCE}"
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"Ultra: {path} holds a {type(state).__name__} instead of a dict; {_CHECKPOINT_SOURCE}")
    return state


def apply_checkpoint(network: UltraVSR, state: dict[str, Any]) -> None:
    """Load temporal shift modules and merge adapters from the released layout into ``network``.

    Args:
        network: with the base model's weights.
        state: ``rank_unet``, ``rank_vae``, lists of adapted modules, ``state_dict_unet``, ``state_dict_vae``.

    Raises:
        UserError: an entry is missing, has another shape than the rank says, or is unknown.
    """
    unet, vae = _Entries(state, "state_dict_unet"), _Entries(state, "state_dict_vae")
    if "conv_in" in _entry(state, "unet_lora_encoder_modules"):
        # The base weight of this layer was trained too, and lies under its adapter.
        for name, parameter in network.unet.conv_in.named_parameters():
            parameter.data.copy_(unet.pop(f"conv_in.base_layer.{name}", tuple(parameter.shape)))
    for entries, part, rank, adapter, modules in (
        (unet, network.unet, "rank_unet", "default_encoder", "unet_lora_encoder_modules"),
        (unet, network.unet, "rank_unet", "default_decoder", "unet_lora_decoder_modules"),
        (unet, network.unet, "rank_unet", "default_others", "unet_lora_others_modules"),
        (vae, network.vae, "rank_vae", "default_encoder", "vae_lora_modules"),
    ):
        for module in _entry(state, modules):
            _merge_adapter(part, module, adapter, int(_entry(state, rank)), entries)
    for entries, rts, prefix in (
        (unet, network.unet_down_rts, "video_down_RTS_blocks"),
        (unet, network.unet_up_rts, "video_up_RTS_blocks"),
        (vae, network.decoder_up_rts, "decoder.video_up_RTS_blocks"),
    ):
        for name, parameter in rts.named_parameters():
            parameter.data.copy_(entries.pop(f"{prefix}.{name}", tuple(parameter.shape)))
    unet.done()
    vae.done()


class _Entries:
    """Tensors of a state dict, each of which must be used exactly once."""

    def __init__(self, state: dict[str, Any], name: str) -> None:
        self._name = name
        self._tensors: dict[str, Tensor] = dict(_entry(state, name))

    def pop(self, key: str, shape: tuple[int, ...]) -> Tensor:
        if key not in self._tensors:
            raise UserError(f"Ultra: the checkpoint lacks {key} in {self._name}; {_CHECKPOINT_SOURCE}")
        tensor = self._tensors.pop(key)
        if tuple(tensor.shape) != shape:
            raise UserError(f"Ultra: {key} in the checkpoint has shape {tuple(tensor.shape)}; {shape} is expected")
        return tensor

    def done(self) -> None:
        if self._tensors:
            some = ", ".join(sorted(self._tensors)[:3])
            raise UserError(f"Ultra: {len(self._tensors)} unknown entries in {self._name} of the checkpoint: {some}")


def _entry(state: dict[str, Any], key: str) -> Any:
    if key not in state:
        raise UserError(f"Ultra: the checkpoint lacks {key}; {_CHECKPOINT_SOURCE}")
    return state[key]


def _merge_adapter(network: nn.Module, name: str, adapter: str, rank: int, entries: _Entries) -> None:
    try:
        layer = network.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, Layer):
        raise UserError(
            f"Ultra: the checkpoint adapts {name}, which the base model lacks; use Stable Diffusion 2.1-base"
        )
    a, b = (
        entries.pop(f"{name}.lora_{letter}.{adapter}.weight", shape)
        for letter, shape in zip("AB", factor_shapes(layer, rank), strict=True)
    )
    merge(layer, a, b)


def save_compact(network: UltraVSR, config: UltraConfig, path: StrPath, metadata: dict[str, str]) -> None:
    """Write a network of our own with its configuration and ``metadata`` (recipe, data, numbers) in one move."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, partial, {**metadata, "config": json.dumps(asdict(config))})
    partial.replace(path)


def load_compact(path: StrPath) -> UltraVSR:
    """A network written by :func:`save_compact`, in fp32 on the CPU.

    Raises:
        UserError: the file is missing, is no safetensors file or holds no such network.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"Ultra: no weights at {path}; give the path of a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            config = (file.metadata() or {}).get("config")
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  # not a mapping
    except SafetensorError as error:
        raise UserError(f"Ultra: {path} is not a safetensors file ({error}); give weights made by vsvsr") from None
    if config is None:
        raise UserError(f"Ultra: {path} holds no network configuration; give weights made by vsvsr")
    network = build(UltraConfig(**json.loads(config)))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"Ultra: {path} does not fit its configuration: {' '.join(str(error).split())}") from None
    return network.eval().requires_grad_(False)
