"""UltraVSR on disk: the released checkpoint, which completes Stable Diffusion, and our own compact networks."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from vsvsr.errors import UserError, shown
from vsvsr.models.common.loading import Loaded, build, parse, read_settings, save_tensors, write_tensors
from vsvsr.models.ultra.base import UNetSettings, VAESettings, load_base, require
from vsvsr.models.ultra.lora import Layer, adapters, factor_shapes, merge
from vsvsr.models.ultra.network import FULL, SCALE, UltraConfig, UltraVSR
from vsvsr.models.ultra.network import build as build_ultra
from vsvsr.models.ultra.rts import RTSForm
from vsvsr.weights import read_checkpoint, read_metadata, read_tensors, state_dict

_log = logging.getLogger(__name__)

_STATES = ("state_dict_unet", "state_dict_vae")
_RELEASED = "released"
"""Metadata of the authors' checkpoint as safetensors: what it holds besides tensors, as JSON."""
_FORM = "rts_form"
_HIGHEST_RANK = 1 << 10
_SOURCE = "the authors link it at github.com/yongliuy/UltraVSR (model_UltraVSR.pkl)"
_MODULES = {
    "unet_lora_encoder_modules": ("rank_unet", "default_encoder"),
    "unet_lora_decoder_modules": ("rank_unet", "default_decoder"),
    "unet_lora_others_modules": ("rank_unet", "default_others"),
    "vae_lora_modules": ("rank_vae", "default_encoder"),
}
"""Entries of the released checkpoint that list adapted layers: with the rank of the adapter, and its name."""


def load(path: Path, base: Path | None = None) -> Loaded[UltraVSR]:
    """The network of a file.

    Args:
        path: a ``.safetensors`` file by `save`, or the authors' checkpoint, as it is or as `released_tensors` has it.
        base: folder of Stable Diffusion 2.1-base, which the authors' checkpoint completes.

    Raises:
        UserError: something is missing, damaged, or does not fit.
    """
    if not needs_base(path):
        return load_compact(path)
    if base is None:
        raise UserError(f"weights file {path} completes Stable Diffusion 2.1-base; give the folder of that as well")
    return load_released(path, base)


def needs_base(path: Path) -> bool:
    """Whether a file completes Stable Diffusion 2.1-base, as the authors' does; our compact networks are whole."""
    return path.suffix != ".safetensors" or _RELEASED in read_metadata(path)


def load_released(path: Path, base: Path, config: UltraConfig = FULL) -> Loaded[UltraVSR]:
    """The released network, adapters merged. Of ``config`` the sizes of the temporal shift modules are used."""
    require(base, "unet", "vae", "scheduler")
    state = _read_released(path)
    unet, vae = load_base(base)
    try:
        network = UltraVSR(unet, vae, replace(config, rts_form=state.get(_FORM, config.rts_form)))
    except ValueError as error:
        raise UserError(f"{base} is not Stable Diffusion 2.1-base: {error}") from error
    try:
        unknown = apply_checkpoint(network, state)
    except UserError as error:
        raise UserError(f"weights file {path}: {error}") from error
    if unknown:
        some = shown(", ".join(unknown[:3]))
        _log.warning("weights file %s: %d entries are no part of it and not used (%s)", path, len(unknown), some)
    return Loaded(network.eval().requires_grad_(False), SCALE)


def _read_released(path: Path) -> dict[str, Any]:
    """The entries of the authors' file that are used, each of its right type."""
    if path.suffix == ".safetensors":
        tensors, metadata = read_tensors(path)
        content = read_settings(metadata, path, _RELEASED)
        for name in _STATES:
            prefix = f"{name}."
            content[name] = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    else:
        try:
            content = read_checkpoint(path)
        except UserError as error:
            raise UserError(f"{error}; {_SOURCE}") from error
    return _checked(content, path)


def _checked(content: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    for name in (*_STATES, *_MODULES, *(rank for rank, _ in _MODULES.values())):
        if name not in content:
            raise UserError(f"weights file {path} lacks {name}; {_SOURCE}")
    state: dict[str, Any] = {name: state_dict(content[name], path) for name in _STATES}
    for modules, (rank, _) in _MODULES.items():
        state |= {rank: content[rank], modules: content[modules]}
        listed = isinstance(state[modules], list) and all(isinstance(name, str) for name in state[modules])
        if not listed or type(state[rank]) is not int or not 0 < state[rank] <= _HIGHEST_RANK:
            raise UserError(f"weights file {path}: {modules} or {rank} is no list of names or no number; {_SOURCE}")
    if _FORM in content:  # a file by `save_released`
        if content[_FORM] not in get_args(RTSForm):
            raise UserError(f"weights file {path}: {_FORM} is {shown(repr(content[_FORM]))}, which is not possible")
        state[_FORM] = content[_FORM]
    return state


def released_tensors(
    content: Mapping[Any, Any], path: Path, config: UltraConfig = FULL
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """The authors' checkpoint as safetensors hold it: tensors, metadata, and the names of entries that are not used.

    Every entry is compared with the layer of the network that it is for.

    Args:
        content: of the authors' file.
        path: of the file, for messages.
        config: of the network that it is for.

    Raises:
        UserError: an entry is missing or of another shape or type.
    """
    state = _checked(content, path)
    with torch.device("meta"):
        network = build_ultra(config)
    shapes = {**state, **{name: {key: t.to("meta") for key, t in state[name].items()} for name in _STATES}}
    try:
        unknown = apply_checkpoint(network, shapes)
    except UserError as error:
        raise UserError(f"weights file {path}: {error}") from error
    tensors = {f"{name}.{key}": value.float() for name in _STATES for key, value in state[name].items()}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in unknown}
    return tensors, {_RELEASED: json.dumps({name: state[name] for name in state if name not in _STATES})}, unknown


def save_released(network: UltraVSR, path: Path, metadata: dict[str, str]) -> None:
    """Write what training changed, in the released layout as safetensors, in one move.

    Args:
        network: with adapters in UNet and encoder.
        path: of a ``.safetensors`` file, which `load` reads with the same base model.
        metadata: recipe, data, numbers.
    """
    own = adapters(network.unet, vae=False), adapters(network.vae, vae=True)
    described: dict[str, Any] = {_FORM: network.rts_form}
    tensors: dict[str, Tensor] = {}
    for modules, (rank, adapter) in _MODULES.items():
        vae = rank == "rank_vae"
        layers = own[vae][adapter]
        described[modules] = list(layers)
        for name, layer in layers.items():
            described[rank] = len(layer.lora_A.weight)
            for letter, factor in (("A", layer.lora_A), ("B", layer.lora_B)):
                tensors[f"{_STATES[vae]}.{name}.lora_{letter}.{adapter}.weight"] = factor.weight
    for name, parameter in network.unet.conv_in.base_layer.named_parameters():
        tensors[f"{_STATES[0]}.conv_in.base_layer.{name}"] = parameter
    for state, prefix, rts in _rts_places(network):
        tensors |= {f"{state}.{prefix}.{name}": parameter for name, parameter in rts.named_parameters()}
    write_tensors(tensors, path, {**metadata, _RELEASED: json.dumps(described)})


def _rts_places(network: UltraVSR) -> list[tuple[str, str, nn.ModuleList]]:
    """State dict, prefix and modules of the temporal shift in the released layout."""
    return [
        (_STATES[0], "video_down_RTS_blocks", network.unet_down_rts),
        (_STATES[0], "video_up_RTS_blocks", network.unet_up_rts),
        (_STATES[1], "decoder.video_up_RTS_blocks", network.decoder_up_rts),
    ]


def apply_checkpoint(network: UltraVSR, state: dict[str, Any]) -> list[str]:
    """Load temporal shift modules and merge adapters from the released layout into ``network``.

    Args:
        network: with the base model's weights.
        state: ``rank_unet``, ``rank_vae``, lists of adapted modules, ``state_dict_unet``, ``state_dict_vae``.

    Returns:
        Names of the entries that are not used, after the name of their state dict and a dot.

    Raises:
        UserError: an entry is missing, or has another shape than the rank says.
    """
    unet, vae = _Entries(state, "state_dict_unet"), _Entries(state, "state_dict_vae")
    if "conv_in" in _entry(state, "unet_lora_encoder_modules"):
        # The base weight of this layer was trained as well; it is stored below its adapter.
        for name, parameter in network.unet.conv_in.named_parameters():
            parameter.data.copy_(unet.pop(f"conv_in.base_layer.{name}", tuple(parameter.shape)))
    for modules, (rank, adapter) in _MODULES.items():
        entries, part = (vae, network.vae) if rank == "rank_vae" else (unet, network.unet)
        for module in _entry(state, modules):
            _merge_adapter(part, module, adapter, _entry(state, rank), entries)
    for place, prefix, rts in _rts_places(network):
        entries = unet if place == _STATES[0] else vae
        for name, parameter in rts.named_parameters():
            parameter.data.copy_(entries.pop(f"{prefix}.{name}", tuple(parameter.shape)))
    return [*unet.rest(), *vae.rest()]


class _Entries:
    """Tensors of a state dict, each of which must be used exactly once."""

    def __init__(self, state: dict[str, Any], name: str) -> None:
        self._name = name
        self._tensors: dict[str, Tensor] = dict(_entry(state, name))

    def pop(self, key: str, shape: tuple[int, ...]) -> Tensor:
        if key not in self._tensors:
            raise UserError(f"the checkpoint lacks {key} in {self._name}; {_SOURCE}")
        tensor = self._tensors.pop(key)
        if tuple(tensor.shape) != shape:
            raise UserError(f"{shown(key)} in the checkpoint has shape {tuple(tensor.shape)}; {shape} is expected")
        return tensor

    def rest(self) -> list[str]:
        return [f"{self._name}.{key}" for key in sorted(self._tensors)]


def _entry(state: Mapping[str, Any], key: str) -> Any:
    if key not in state:
        raise UserError(f"the checkpoint lacks {key}; {_SOURCE}")
    return state[key]


def _merge_adapter(network: nn.Module, name: str, adapter: str, rank: int, entries: _Entries) -> None:
    try:
        layer = network.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, Layer):
        raise UserError(
            f"the checkpoint adapts {shown(name)}, which the base model lacks; use Stable Diffusion 2.1-base"
        )
    a, b = (
        entries.pop(f"{name}.lora_{letter}.{adapter}.weight", shape)
        for letter, shape in zip("AB", factor_shapes(layer, rank), strict=True)
    )
    merge(layer, a, b)


def save(network: UltraVSR, config: UltraConfig, path: Path, metadata: dict[str, str]) -> None:
    """Write a network of our own with its configuration and ``metadata`` (recipe, data, numbers) in one move."""
    save_tensors(network, path, {**metadata, "config": json.dumps(asdict(config))})


def load_compact(path: Path) -> Loaded[UltraVSR]:
    """The network that `save` wrote."""
    tensors, metadata = read_tensors(path)
    config = parse(UltraConfig, read_settings(metadata, path), path)
    unet, vae = parse(UNetSettings, config.unet, path), parse(VAESettings, config.vae, path)
    config = replace(config, unet=asdict(unet), vae=asdict(vae))
    return Loaded(build(partial(build_ultra, config), tensors, path, "UltraVSR"), SCALE)
