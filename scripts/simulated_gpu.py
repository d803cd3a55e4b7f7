"""Networks on a simulated GPU: fake tensors, whose devices, types and shapes must match. Needs no GPU.

Nothing is computed. Where a result depends on values, such as the list of active tiles, a quarter of them is chosen.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is launched, and bytes: every operation that is no view reads and writes its tensors once."""

    FREE = ("prim::", "aten::empty", "aten::new_empty", "aten::_unsafe_view", "aten::_local_scalar_dense")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = self.result(func, args, kwargs)
        if not func.is_view and not func.name().startswith(self.FREE):
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
            self.launches += 1
        return result

    def result(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What the operation gives."""
        return func(*args, **kwargs)


class SimulatedGPU(Traffic):  # type: ignore[no-untyped-call]
    """Answers what depends on values, and counts how often the host waits for the device.

    A bias inside a convolution is a launch, and a correction of the light flow makes three.

    Args:
        answer: to every boolean that the host reads.

    Attributes:
        waits: how often the host waits.
        kernels: names of our operators that were called.
        convolutions: which were called, and with which settings: benchmark, deterministic, cuDNN, TF32.
    """

    READS = ("aten::item", "aten::is_nonzero", "aten::_local_scalar_dense")

    def __init__(self, *, answer: bool = False) -> None:
        super().__init__()
        self._answer = answer
        self.waits = 0
        self.kernels: set[str] = set()
        self.convolutions: set[tuple[object, ...]] = set()

    def result(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What the operation gives, or a quarter of what it could."""
        name = func.name()
        if name.startswith("vsvsr::"):
            self.kernels.add(name.removeprefix("vsvsr::"))
            self.launches += 2 * (name == "vsvsr::flow_correction")
        if name.startswith("aten::") and "conv" in name:
            self.convolutions.add((name, *args[9:]))
            self.launches += len(args) > 2 and args[2] is not None
        if name == "aten::to.dtype_layout" and kwargs["device"].type == "cpu":
            self._wait_for(args)
        if name == "aten::nonzero":
            self._wait_for(args)
            return args[0].new_empty((args[0].numel() // 4, args[0].dim()), dtype=torch.int64)
        if name == "aten::index.Tensor" and args[1][0] is not None and args[1][0].dtype == torch.bool:
            self._wait_for(args)
            return args[0].new_empty((args[1][0].numel() // 4, *args[0].shape[args[1][0].dim() :]))
        if name in self.READS:
            self._wait_for(args)
            return self._answer if args[0].dtype == torch.bool else 0
        return super().result(func, args, kwargs)

    def _wait_for(self, args: Any) -> None:
        """Tensors of the GPU."""
        self.waits += any(x.is_cuda for x in tree_leaves(args) if isinstance(x, Tensor))


def move(network: nn.Module) -> None:
    """Replace parameters and buffers by fake ones of the simulated GPU, inside a `FakeTensorMode`."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            module._parameters[name] = nn.Parameter(_fake(parameter), requires_grad=False)
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = _fake(buffer)


def _fake(x: Tensor) -> Tensor:
    """A tensor like ``x`` on the simulated GPU."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
