"""Construction of networks from files, in memory bounded by the size of the file."""

import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vsvsr.errors import UserError, shown
from vsvsr.files import replace_file
from vsvsr.ops import pin_convolutions

_LONGEST_SETTINGS = 1 << 16
_MOST = 1 << 16
_FILLS = frozenset(("normal_", "uniform_", "kaiming_uniform_", "erfinv_"))
_TABLES = 1 << 26
"""Bytes for tables that a network computes and for their intermediate results, besides the size of the weights."""
_FACTORIES = frozenset((torch.zeros, torch.ones, torch.full, torch.rand, torch.randn))
_UNTYPED = _FACTORIES | {torch.empty, torch.tensor, torch.arange, torch.linspace}
"""Whose tensors of real numbers have torch's default type if none is given."""


@dataclass(frozen=True)
class Loaded[Network: nn.Module]:
    """A network from a file, in evaluation mode, in fp32 on the CPU.

    Attributes:
        network: its ``half()`` is the rule for half precision: what has to stay in fp32 stays so.
        scale: output pixels per input pixel in each direction.
        smallest_side: smallest height and width that the network accepts.
    """

    network: Network
    scale: int
    smallest_side: int = 16

    def place(self, device: torch.device, dtype: torch.dtype) -> Network:
        """The network moved to ``device``, where it computes in ``dtype``, fp32 or fp16."""
        network = self.network.to(device)
        pin_convolutions(network)
        return network.half() if dtype == torch.float16 else network


class _Construction(TorchFunctionMode):
    """Mode in which a network is constructed without memory for its weights, and within limits for everything else.

    ``torch.empty``, with which torch's layers create their weights, gives tensors on the meta device, which are not
    initialised: the file's weights replace them. Tables that a network computes are real tensors.

    Args:
        tensors: how many the file holds; a network that creates many more is refused.
        size: limit in bytes for tables and the intermediate results of computing them.
    """

    def __init__(self, tensors: int, size: int) -> None:
        super().__init__()
        self._tensors = 100 + 2 * tensors
        self._bytes = size

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Raises in functions that return tensors only: context managers restore gradient mode by calls that pass here.
        kwargs = kwargs or {}
        usual = kwargs.get("dtype") is not None or torch.get_default_dtype() == torch.float32
        if func in _UNTYPED and not usual and func(*args, **{**kwargs, "device": "meta"}).is_floating_point():
            kwargs = {**kwargs, "dtype": torch.float32}  # a script has chosen another default
        if func is torch.empty:
            self._tensors -= 1
            if self._tensors < 0:
                raise ValueError("it holds too few tensors")
            return func(*args, **{**kwargs, "device": "meta"})
        if getattr(func, "__name__", "") in _FILLS:  # methods of tensors, and functions of torch.nn.init
            return args[0] if args else kwargs["tensor"]
        if func in _FACTORIES:
            self._spend(func(*args, **{**kwargs, "device": "meta"}))
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and not result.is_meta:
            self._spend(result)
        return result

    def _spend(self, tensor: Tensor) -> None:
        self._bytes -= tensor.nbytes
        if self._bytes < 0:
            raise ValueError("its tables would be larger than its weights")


def build[Network: nn.Module](
    make: Callable[[], Network],
    tensors: Mapping[str, Tensor],
    path: Path,
    kind: str,
    *,
    extra: list[str] | None = None,
) -> Network:
    """The network that ``make`` constructs, with ``tensors`` as its weights, in evaluation mode, in fp32 on the CPU.

    The network is constructed on the meta device and compared with ``tensors`` by names and shapes before memory is
    allocated; the time of construction is bounded by the number of tensors. Settings in a file therefore cannot make
    the network larger than the file.

    Args:
        make: constructs the network; an exception means that the settings are invalid.
        tensors: of the whole state dict.
        path: of the file, for messages.
        kind: what the file should hold, for messages.
        extra: takes the names of tensors that are no part of the network; None refuses them.

    Raises:
        UserError: the tensors are not those of the network.
    """
    try:
        with _Construction(len(tensors), sum(value.nbytes for value in tensors.values()) + _TABLES):
            network = make()
    except UserError:
        raise
    except Exception as error:  # constructors raise many kinds for invalid settings
        raise _misfit(path, kind, str(error) or type(error).__name__) from error
    expected = network.state_dict()
    for name, value in expected.items():
        if name not in tensors:
            raise _misfit(path, kind, f"it lacks {name}")
        if tensors[name].shape != value.shape:
            sizes = f"{tuple(tensors[name].shape)}, {tuple(value.shape)} is expected"
            raise _misfit(path, kind, f"{name} has shape {sizes}")
        if tensors[name].is_floating_point() != value.is_floating_point():
            raise _misfit(path, kind, f"{name} is of type {tensors[name].dtype}, {value.dtype} is expected")
    unknown = [name for name in tensors if name not in expected]
    if extra is None and unknown:
        raise _misfit(path, kind, f"{unknown[0]} is no part of it")
    if extra is not None:
        extra += unknown
    own = {name: tensors[name].to(value.dtype, copy=True).contiguous() for name, value in expected.items()}
    network.load_state_dict(own, assign=True)
    assert not any(buffer.is_meta for buffer in network.buffers()), "a buffer that is not saved is made by torch.empty"
    return network.eval().requires_grad_(False)


def save_tensors(network: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write the state dict and ``metadata`` to ``path`` as safetensors, in one move."""
    write_tensors(network.state_dict(), path, metadata)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors and ``metadata`` to ``path`` as safetensors, in one move."""
    partial = path.with_name(path.name + ".partial")
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, partial, metadata)
    replace_file(partial, path)


def read_settings(metadata: Mapping[str, str], path: Path, key: str = "config") -> dict[str, Any]:
    """A JSON object in the metadata of our own files, not yet checked: see `parse`.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if key not in metadata:
        raise UserError(f"weights file {path} holds no network configuration; give weights made by vsvsr")
    return _parse_json(metadata[key], path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ``UserError`` for anything else."""
    try:
        with path.open(encoding="utf-8") as file:
            return _parse_json(file.read(_LONGEST_SETTINGS + 1), path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8") from error


def _parse_json(text: str, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(text) if len(text) <= _LONGEST_SETTINGS else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{path}: its network configuration is damaged (not a JSON object, or too long)")
    return values


def parse[Settings](kind: type[Settings], values: Mapping[str, Any], path: Path) -> Settings:
    """A dataclass from plain values, each checked against the type of its field; integers are counts and
    widths, from 1 to 65,536.

    Fields may be of type int, float, bool, str, ``Literal``, ``tuple[X, ...]``, unions of these with each other and
    None, and ``Mapping``, whose values stay unchecked.

    Raises:
        UserError: a value is of another type, unknown or out of range.
    """
    hints = typing.get_type_hints(kind)
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    for name, value in values.items():
        if name not in known:
            raise UserError(f"{path}: unknown network setting {shown(name)}; give weights made for this version")
        if not _fits(value, hints[name]):
            raise UserError(f"{path}: network setting {name} is {shown(repr(value))}, which is not possible")
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except (TypeError, ValueError) as error:  # a missing field, or a check of the class
        raise UserError(f"{path}: {shown(str(error))}") from error


def _fits(value: object, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return type(value) in map(type, parts) and value in parts
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(item, parts[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, dict)
    if hint is types.NoneType:
        return value is None
    if hint is float:
        return type(value) in (int, float) and abs(value) < 1e9  # type: ignore[arg-type]  # a number by now
    return type(value) is hint and (hint is not int or 0 < value <= _MOST)  # type: ignore[operator]


def _misfit(path: Path, kind: str, detail: str) -> UserError:
    return UserError(f"weights file {path} is not a checkpoint of {kind}: {shown(detail)}")
