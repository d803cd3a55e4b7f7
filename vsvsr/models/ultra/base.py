"""The base model of UltraVSR: a local folder of Stable Diffusion 2.1-base in the layout of diffusers."""

import logging
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vsvsr.errors import UserError, shown
from vsvsr.models.common.loading import build, parse, read_json
from vsvsr.models.ultra.network import FULL
from vsvsr.models.ultra.network import extra as import_extra
from vsvsr.weights import read_tensors

_SOURCE = (
    "give Stable Diffusion 2.1-base as diffusers has it (tokenizer, text_encoder, scheduler, vae, unet), published as "
    "stabilityai/stable-diffusion-2-1-base and withdrawn in 2025; copies exist"
)
_FILES = {
    "unet": ("unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
    "vae": ("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
    "scheduler": ("scheduler/scheduler_config.json",),
    "text_encoder": ("text_encoder/config.json", "text_encoder/model.safetensors"),
    "tokenizer": ("tokenizer/vocab.json", "tokenizer/merges.txt"),
}
_PICKLED = {"model": "pytorch_model"}
"""Names of files of pickled tensors where they differ from those of safetensors, without suffix."""
_TOKENS: Literal[77] = 77
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class UNetSettings:
    """Arguments of diffusers' ``UNet2DConditionModel`` that a file may set."""

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    attention_head_dim: int | tuple[int, ...] = 8
    cross_attention_dim: int = 1280
    norm_num_groups: int = 32
    use_linear_projection: bool = False


@dataclass(frozen=True, kw_only=True)
class VAESettings:
    """Arguments of diffusers' ``AutoencoderKL`` that a file may set."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int = 1
    norm_num_groups: int = 32
    latent_channels: Literal[4] = 4
    down_block_types: tuple[Literal["DownEncoderBlock2D"], ...]
    up_block_types: tuple[Literal["UpDecoderBlock2D"], ...]
    scaling_factor: float = 0.18215

    def __post_init__(self) -> None:
        if self.scaling_factor <= 0:
            raise ValueError(f"scaling_factor is {self.scaling_factor}; it must be positive")


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Arguments of transformers' ``CLIPTextConfig`` that a file may set."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: Literal["gelu", "quick_gelu"] = "quick_gelu"
    max_position_embeddings: Literal[77] = _TOKENS


def load_base(folder: Path, *, extra: list[str] | None = None) -> tuple[Any, Any]:
    """UNet and autoencoder of the folder, in fp32 on the CPU; nothing is downloaded.

    ``extra`` takes the names of tensors that are no part of them; with None there is a warning in the log instead.

    Raises:
        UserError: something is missing, damaged, or of another model.
    """
    require(folder, "unet", "vae", "scheduler")
    schedule = read_json(folder / "scheduler/scheduler_config.json").get("prediction_type", "epsilon")
    if schedule != "epsilon":
        raise UserError(
            f"{folder} predicts {shown(str(schedule))}; give Stable Diffusion 2.1-base, which predicts epsilon "
            "(2.1 itself does not)"
        )
    diffusers = import_extra("diffusers")
    unet = _load(folder / "unet", UNetSettings, lambda known: diffusers.UNet2DConditionModel(**known), extra=extra)
    vae = _load(
        folder / "vae", VAESettings, lambda known: diffusers.AutoencoderKL(**known), _modern_attention, extra=extra
    )
    return unet, vae


def encode_prompt(folder: Path, prompt: str, *, extra: list[str] | None = None) -> Tensor:
    """Text embedding ``(1, 77, width)`` in fp32, by the text tower of the folder; ``extra`` as in `load_base`."""
    require(folder, "text_encoder", "tokenizer")
    transformers = import_extra("transformers")

    def make(known: Mapping[str, Any]) -> nn.Module:
        tower: nn.Module = transformers.CLIPTextModel(transformers.CLIPTextConfig(**known))
        # Older versions of transformers nest the parts one level deeper.
        return getattr(tower, "text_model", tower)

    tower = _load(folder / "text_encoder", TextSettings, make, _text_names, file="model.safetensors", extra=extra)
    tokens = tokenise(folder, [prompt])
    if int(tokens.max()) >= len(tower.get_parameter("embeddings.token_embedding.weight")):
        raise UserError(f"{folder}: its tokenizer belongs to another text encoder; {_SOURCE}")
    with torch.no_grad():  # training may use the result
        return tower(tokens)[0]  # type: ignore[no-any-return]


def tokenise(folder: Path, texts: list[str]) -> Tensor:
    """Token ids ``(n, 77)`` by the tokenizer of the folder; longer texts are cut, shorter ones padded with 0.

    So Stable Diffusion 2 was trained, and so its folder says in a file that not every copy has.
    """
    require(folder, "tokenizer")
    kind = import_extra("transformers").CLIPTokenizer
    try:
        tokenizer = kind.from_pretrained(folder / "tokenizer", local_files_only=True)
        tokens = tokenizer(texts, max_length=_TOKENS, truncation=True).input_ids
    except Exception as error:  # parsers raise many kinds for damaged input
        raise UserError(f"{folder / 'tokenizer'} cannot be read: {shown(str(error))}") from error
    return torch.tensor([[*ids, *([0] * (_TOKENS - len(ids)))] for ids in tokens])


def holds_base(folder: Path) -> bool:
    """Whether a folder looks like Stable Diffusion in the layout of diffusers."""
    return (folder / "unet/config.json").is_file()


def copy_base(folder: Path, target: Path) -> list[str]:
    """Copy what is used of Stable Diffusion 2.1-base, after comparing every tensor with the network's.

    Args:
        folder: in the layout of diffusers.
        target: a folder to make; with the same layout, tensors in safetensors.

    Returns:
        Names of tensors that are no part of the networks; the copy has them too.

    Raises:
        UserError: a file or tensor is missing or of another shape, or it is another Stable Diffusion.
    """
    for name in (name for part in _FILES.values() for name in part):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        pickled = (folder / name).with_suffix(".bin").with_stem(_PICKLED.get(Path(name).stem, Path(name).stem))
        if name.endswith(".safetensors") and not (folder / name).is_file() and pickled.is_file():
            save_file({key: t.contiguous() for key, t in read_tensors(pickled)[0].items()}, target / name)
        elif (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    return check_base(target, shown_as=folder)


def check_base(folder: Path, *, shown_as: Path) -> list[str]:
    """Compare a folder with Stable Diffusion 2.1-base, tensor by tensor.

    Args:
        folder: in the layout of diffusers.
        shown_as: where it comes from, for messages.

    Returns:
        Names of tensors that are no part of the networks.

    Raises:
        UserError: a file or tensor is missing or of another shape, or it is another Stable Diffusion.
    """
    require(folder, *_FILES, shown_as=shown_as)
    extra: list[str] = []
    try:
        unet, vae = (part.config for part in load_base(folder, extra=extra))
        width = len(encode_prompt(folder, "", extra=extra)[0, 0])
    except UserError as error:
        # A single file has no files within.
        within = r"[\w/.]*" if shown_as.is_file() else ""
        raise UserError(re.sub(re.escape(str(folder)) + within, lambda _: str(shown_as), str(error))) from error
    for config, wanted in ((unet, FULL.unet), (vae, FULL.vae)):
        for name, value in wanted.items():
            have = config[name]
            if (tuple(have) if isinstance(have, list) else have) != value:
                difference = f"its {name} is {shown(str(have))}, that of 2.1-base is {value}"
                raise UserError(f"{shown_as} is another Stable Diffusion: {difference}")
    if width != FULL.unet["cross_attention_dim"]:
        raise UserError(f"{shown_as}: its text embeddings have {width} channels, another number than its UNet expects")
    return extra


def require(folder: Path, *parts: str, shown_as: Path | None = None) -> None:
    """Raise ``UserError`` where files of these parts are missing."""
    missing = [name for part in parts for name in _FILES[part] if not (folder / name).is_file()]
    if missing:
        raise UserError(f"the base model folder {shown_as or folder} lacks {', '.join(missing)}; {_SOURCE}")


def _load[Settings](
    folder: Path,
    kind: type[Settings],
    make: Callable[[Mapping[str, Any]], nn.Module],
    rename: Callable[[str], str | None] = str,
    *,
    file: str = "diffusion_pytorch_model.safetensors",
    extra: list[str] | None = None,
) -> nn.Module:
    """A part of the folder. Settings that are no field of ``kind`` are ignored: they are those of Stable Diffusion.

    ``rename`` gives the name in the network, None for tensors that are not needed.
    """
    values = read_json(folder / "config.json")
    known = parse(kind, {field.name: values[field.name] for field in fields(kind) if field.name in values}, folder)  # type: ignore[arg-type]  # a dataclass
    renamed = ((rename(name), tensor) for name, tensor in read_tensors(folder / file)[0].items())
    tensors = {name: tensor for name, tensor in renamed if name is not None}
    what = f"the {folder.name} of Stable Diffusion"
    left_out: list[str] = []
    part = build(lambda: make(asdict(known)), tensors, folder / file, what, extra=left_out)  # type: ignore[call-overload]  # a dataclass
    if extra is not None:
        extra += left_out
    elif left_out:
        some = shown(", ".join(left_out[:3]))
        _log.warning("%s: %d entries are no part of %s and not used (%s)", folder / file, len(left_out), what, some)
    return part


def _modern_attention(name: str) -> str:
    """Today's name of a tensor: the published autoencoder has names of an older version of diffusers."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


def _text_names(name: str) -> str | None:
    return None if name.endswith("position_ids") else name.removeprefix("text_model.")
