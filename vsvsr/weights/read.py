"""Reads tensors from untrusted files: no code in a file is executed, and no size stated in it is trusted."""

import io
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from safetensors import SafetensorError, safe_open

from vsvsr.errors import UserError, shown
from vsvsr.weights.torchscript import is_torchscript, torchscript_tensors

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPERS = ("params_ema", "params", "state_dict")
"""Keys under which training frameworks put the state dict (BasicSR, OpenMMLab)."""
_MOST_TENSORS = 20_000
"""The largest network here has about a thousand."""
_LONGEST_PICKLE = 1 << 24
"""Bytes of a checkpoint's structure, without its values; a thousand tensors take 200,000."""
_GLOBALS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|parameter)|"
    r"torch (Float|Half|BFloat16|Double|Long|Int|Short|Char|Byte|Bool)Storage"
)
"""Globals that a checkpoint may refer to. ``weights_only`` allows more, such as a ``bytearray`` of any size."""


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """The state dict in a file, on the CPU, and its metadata.

    Memory stays within a small multiple of the file's size.

    Args:
        path: a ``.safetensors`` file, or a PyTorch checkpoint that holds tensors and plain values only. A state dict
            under ``params_ema``, ``params`` or ``state_dict`` is unwrapped.

    Returns:
        Finite tensors by name, possibly mapped from the file, and the metadata of a safetensors file (empty for a
        checkpoint).

    Raises:
        UserError: the file is missing, damaged, of another kind, a pickle that would run code, or holds
            non-finite values.
    """
    if path.suffix != ".safetensors":
        return state_dict(unwrapped(read_checkpoint(path)), path), {}
    _require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in names} if len(names) <= _MOST_TENSORS else {}
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror}", error)
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:  # the last three for types torch lacks
        _refuse(path, "is not a safetensors file, or is damaged", error)
    if len(names) > _MOST_TENSORS:
        _refuse(path, f"holds {len(names)} tensors; no network here has more than {_MOST_TENSORS}")
    return state_dict(tensors, path), metadata


def unwrapped(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The state dict in a checkpoint: itself, or what lies under ``params_ema``, ``params`` or ``state_dict``."""
    return next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without its tensors; empty for anything else, damaged files included."""
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def read_checkpoint(path: Path) -> dict[Any, Any]:
    """The content of a PyTorch checkpoint: tensors, numbers, text, lists and dicts of these. `state_dict` checks sizes.

    Of a TorchScript archive, the tensors of its modules by name.

    Raises:
        UserError: the file is missing, damaged, or holds anything else.
    """
    import torch  # here, so that the command line starts quickly, and doctor even when torch is broken

    _require_file(path)
    try:
        data = path.read_bytes()
        if is_torchscript(data):
            return dict(torchscript_tensors(data))
        content = torch.load(_screened(data), map_location="cpu", weights_only=True)
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror}", error)
    except Exception as error:  # parsers raise many kinds for damaged input
        _refuse(path, "is not a PyTorch checkpoint of tensors alone, or is damaged", error)
    if not isinstance(content, dict):
        _refuse(path, "holds no state dict (tensors by name)")
    return content


def state_dict(content: object, path: Path) -> dict[str, "Tensor"]:
    """``content`` of the file ``path``, after checking that it is a state dict no larger than the file.

    Raises:
        UserError: it is something else, larger than the file, or holds non-finite values.
    """
    import torch

    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        _refuse(path, "holds no state dict (tensors by name)")
    # Tensors that share storage, or have strides of zero, are larger than what is stored.
    if len(content) > _MOST_TENSORS or sum(value.nbytes for value in content.values()) > path.stat().st_size:
        _refuse(path, "describes more than it holds")
    tensors = {name: value.detach() for name, value in content.items()}  # some checkpoints hold parameters
    for name, value in tensors.items():
        if value.is_complex() or (value.is_floating_point() and value.element_size() < 2):
            _refuse(path, f"holds values in {shown(name)} of type {value.dtype}")
        # aminmax propagates NaN; fp64 values beyond the range of fp32 would become infinite.
        if value.is_floating_point() and value.numel():
            largest = torch.finfo(torch.float32).max
            if not all(abs(float(end)) <= largest for end in value.aminmax()):
                _refuse(path, f"holds values in {shown(name)} that are not finite")
    return tensors


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")


def _refuse(path: Path, reason: str, cause: Exception | None = None) -> NoReturn:
    raise UserError(f"weights file {path} {reason}") from cause


def _screened(data: bytes) -> BinaryIO:
    """The checkpoint for ``torch.load``. Raises ``ValueError`` where stated sizes exceed the file's."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        # The form from before PyTorch 1.6: number, version, system, structure, keys, then the values.
        file = io.BytesIO(data)
        for _ in range(5):
            _screen_pickle(file)
        return io.BytesIO(data)
    copy = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(copy, "w") as screened:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("compressed")
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError("two entries of one name")
        if sum(entry.file_size for entry in entries) > len(data):
            raise ValueError("sizes beyond the file's")
        # Rewritten, so that torch reads exactly what was checked: zip readers disagree about malformed archives.
        for entry in entries:
            content = archive.read(entry)
            if entry.filename.endswith(".pkl"):
                _screen_pickle(io.BytesIO(content))
            screened.writestr(entry.filename, content)
    copy.seek(0)
    return copy


def _screen_pickle(file: BinaryIO) -> None:
    """Skip the next pickle. Raises ``ValueError`` when it is too long or refers to anything but `_GLOBALS`."""
    start = file.tell()
    for operation, argument, position in pickletools.genops(file):
        if operation.name == "GLOBAL" and not _GLOBALS.fullmatch(str(argument)):
            raise ValueError(f"refers to {argument}")
        if (position or 0) - start > _LONGEST_PICKLE:
            raise ValueError("structure too long")
