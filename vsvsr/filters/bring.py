"""Weights that users bring: the authors' files, recognised by their layout, checked tensor by tensor, and stored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vsvsr import weights
from vsvsr.errors import UserError, check
from vsvsr.models.basicvsr.checkpoints import holds_realbasicvsr, realbasicvsr_tensors
from vsvsr.models.mia.checkpoints import holds_mia, published_tensors
from vsvsr.models.realesrgan import holds_x4plus, x4plus_tensors
from vsvsr.models.ultra.base import copy_base, holds_base
from vsvsr.models.ultra.checkpoints import released_tensors
from vsvsr.models.ultra.clip_iqa import clip_tensors, holds_clip
from vsvsr.models.ultra.single_file import convert_single_file, holds_single_file

type Take = Callable[[Mapping[str, Tensor], Path], tuple[dict[str, Tensor], list[str]]]
"""The tensors to store of a state dict, and the names of those left out; ``UserError`` where some do not fit."""

_KINDS: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, Tensor]], bool], Take], ...] = (
    (("MIAVSR_REDS_x4", "MIAVSR_Vid4_x4"), holds_mia, published_tensors),
    (("RealBasicVSR_x4",), holds_realbasicvsr, realbasicvsr_tensors),
    (("CLIP-RN50",), holds_clip, clip_tensors),
    (("RealESRGAN_x4plus",), holds_x4plus, x4plus_tensors),
)
"""Names under which a file of a layout is published, what recognises it, and what checks it."""
_BASE, _ULTRA = "stable-diffusion-2-1-base", "UltraVSR"


@dataclass(frozen=True, kw_only=True)
class Brought:
    """What was added.

    Attributes:
        name: of the manifest.
        path: where it lies now.
        left_out: names of entries of the file that are no part of it.
    """

    name: str
    path: Path
    left_out: tuple[str, ...] = ()


def bring(path: Path, name: str = "") -> Brought:
    """Recognise the authors' file, check it, and store it in the cache folder, as safetensors, under its name.

    Args:
        path: a checkpoint, or a folder of Stable Diffusion in the layout of diffusers. Of a single file of it the name
            tells the network by a ``512``, as published: its tensors do not.
        name: of the manifest, where several files have the same layout; by default the file's own name decides.

    Raises:
        UserError: the file is missing, damaged, of no layout that is known, or not what it seems to be: a tensor is
            missing or of another shape.
    """
    if path.is_dir():
        if not holds_base(path):
            raise UserError(f"{path} is no folder of Stable Diffusion: it has no unet/config.json")
        return _kept(_name((_BASE,), name, path), partial(copy_base, path))
    published = _published(path)
    if published is not None:
        return Brought(name=_name((published,), name, path), path=weights.install(published, local=path))
    content: Mapping[Any, Any]
    content = weights.read_tensors(path)[0] if path.suffix == ".safetensors" else weights.read_checkpoint(path)
    if "state_dict_unet" in content:
        tensors, metadata, left_out = released_tensors(content, path)
        return _kept(_name((_ULTRA,), name, path), partial(_save, tensors, left_out, metadata=metadata))
    state = weights.state_dict(weights.unwrapped(content), path)
    if holds_single_file(state):
        if not name and "512" not in path.stem:
            raise UserError(
                f"{path} can be Stable Diffusion 2.1-base or 2.1, which predicts something else and does not fit; "
                f"if it is the first, say so with --name {_BASE}"
            )
        return _kept(_name((_BASE,), name, path), partial(convert_single_file, state, path))
    for names, recognises, take in _KINDS:
        if recognises(state):
            chosen = _name(names, name, path)
            return _kept(chosen, partial(_save, *take(state, path)))
    raise UserError(
        f"weights file {path} is none of those that can be added: "
        + ", ".join(row.name for row in weights.MANIFEST if not row.shipped)
    )


def _published(path: Path) -> str | None:
    """The name of the manifest's file that this is to the byte, if any."""
    size = path.stat().st_size if path.is_file() else -1
    same_size = [row for row in weights.MANIFEST if row.sources and row.size == size]
    found = weights.sha256(path) if same_size else ""
    return next((row.name for row in same_size if row.sha256 == found), None)


def _name(names: tuple[str, ...], given: str, path: Path) -> str:
    """Which of the names of a layout a file gets."""
    check(not given or given in names, "name", given, " or ".join(names))
    if given or len(names) == 1:
        return given or names[0]
    for name in names:
        if path.stem.lower() == name.lower():
            return name
    raise UserError(f"{path} can be {' or '.join(names)}; say which with --name")


def _kept(name: str, write: Callable[[Path], list[str]]) -> Brought:
    left_out: list[str] = []
    path = weights.keep(name, lambda target: left_out.extend(write(target)))
    return Brought(name=name, path=path, left_out=tuple(left_out))


def _save(
    tensors: Mapping[str, Tensor], left_out: list[str], target: Path, *, metadata: dict[str, str] | None = None
) -> list[str]:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target, metadata)
    return left_out
