"""Reads the tensors of TorchScript archives, such as OpenAI's CLIP, without running what else they hold."""

import io
import math
import pickle
import pickletools
import re
import zipfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST_PICKLE = 1 << 24
_TYPES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_GLOBALS = re.compile(
    r"__torch__(\.\S+)? \S+|collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch\.jit\._pickle build_\w+list|"
    rf"torch ({'|'.join(_TYPES)})",
    re.ASCII,
)


def is_torchscript(data: bytes) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return False
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def torchscript_tensors(data: bytes) -> dict[str, "Tensor"]:
    """Parameters and buffers by name: the structure is read, code in the archive is neither compiled nor run.

    Raises:
        ValueError: it is damaged, or refers to anything but modules and tensors; other exceptions for damage, too.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if sum(entry.compress_size for entry in entries) > len(data):
            raise ValueError("sizes beyond the file's")
        roots = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError("no single structure")
        structure = _stored(archive, roots[0])
        if len(structure) > _LONGEST_PICKLE:
            raise ValueError("structure too long")
        for operation, argument, _ in pickletools.genops(structure):
            if operation.name == "GLOBAL" and not _GLOBALS.fullmatch(str(argument)):
                raise ValueError(f"refers to {argument}")
            if operation.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"):
                raise ValueError(f"uses {operation.name}")
        return _collect(_Reader(archive, roots[0].removesuffix(".pkl"), structure).load())


class _Module:
    """What stands for an object of any class: its attributes."""

    def __setstate__(self, state: object) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


class _Reader(pickle.Unpickler):
    """Makes modules and tensors, and nothing else."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, structure: bytes) -> None:
        super().__init__(io.BytesIO(structure))
        self._archive, self._folder = archive, folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch":
            return _TYPES[name]
        return {"OrderedDict": _no_hooks, "_rebuild_tensor_v2": _rebuilt}.get(name, _as_it_is)

    def persistent_load(self, pid: Any) -> "Tensor":
        import torch

        _, kind, key, _, _ = pid
        if key not in self._storages:
            content = bytearray(_stored(self._archive, f"{self._folder}/{key}"))
            dtype = getattr(torch, kind)
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[key]


def _rebuilt(storage: "Tensor", offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> "Tensor":
    if math.prod(size) > storage.numel() or offset < 0 or min((*size, *stride), default=0) < 0:
        raise ValueError("a tensor beyond its storage")
    return storage.as_strided(size, stride, offset)


def _no_hooks() -> None:
    """For the empty dict that belongs to each tensor."""


def _as_it_is(values: object) -> object:
    """For lists; a copy, made time and again, could fill the memory."""
    return values


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """An entry that is no larger than in the file."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError("compressed")
    return archive.read(name)


def _collect(root: object) -> dict[str, "Tensor"]:
    """Tensors by the attributes that lead to them, each module once."""
    from torch import Tensor

    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [("", root)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Tensor):
            tensors[path] = value
        elif isinstance(value, _Module) and id(value) not in seen:
            seen.add(id(value))
            waiting += [(f"{path}.{name}".lstrip("."), part) for name, part in value.__dict__.items()]
    return tensors
