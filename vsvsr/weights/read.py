"""Reading tensors from files. Nothing in a file is ever executed."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from vsvsr.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPERS = ("params_ema", "params", "state_dict")
"""Keys under which training frameworks put the state dict (BasicSR, OpenMMLab)."""


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """The state dict in a file, on the CPU, and its metadata.

    Args:
        path: a ``.safetensors`` file, or a PyTorch checkpoint that holds tensors and plain values only. A state dict
            under ``params_ema``, ``params`` or ``state_dict`` is unwrapped.

    Returns:
        Tensors by name, and the metadata of a safetensors file (empty for a checkpoint).

    Raises:
        UserError: the file is missing, damaged, of another kind, or a pickle that wants to run code.
    """
    import torch  # here, so that the command line starts quickly, and doctor even when torch is broken

    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"weights file {path} is not a safetensors file, or is damaged") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the parser stumbles over, the file is not one of ours
        raise UserError(f"weights file {path} is not a PyTorch checkpoint of tensors alone, or is damaged") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"weights file {path} holds no state dict (tensors by name)")
    return {str(key): value for key, value in content.items()}, {}
