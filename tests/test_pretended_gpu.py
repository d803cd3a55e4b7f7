"""The networks on a pretended GPU: tensors without numbers, but with devices, types and shapes that must fit.

Nothing is computed. What a network asks the device for, such as which tiles, is answered with a quarter of them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vsvsr.models.common import Write
from vsvsr.models.fastreal import COMPACT, FastRealConfig, FastRealVSR
from vsvsr.models.mia import MIAVSR
from vsvsr.models.skipvsr import SkipVSR

pytest.importorskip("triton", reason="Triton exists for Linux only")

HEIGHT, WIDTH = 70, 90

type Run = Callable[[Any, list[Tensor]], Iterator[Write]]


class Quarter(TorchDispatchMode):
    """Answers what depends on numbers, and notes which operators of ours were asked for.

    Args:
        answer: to every yes or no.
    """

    def __init__(self, answer: bool) -> None:
        super().__init__()
        self._answer = answer
        self.kernels: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name.startswith("vsvsr::"):
            self.kernels.add(name.removeprefix("vsvsr::"))
        if name == "aten::nonzero":
            return args[0].new_empty((args[0].numel() // 4, args[0].dim()), dtype=torch.int64)
        if name == "aten::index.Tensor" and args[1][0] is not None and args[1][0].dtype == torch.bool:
            kept = args[1][0]
            return args[0].new_empty((kept.numel() // 4, *args[0].shape[kept.dim() :]))
        if name in ("aten::item", "aten::is_nonzero", "aten::_local_scalar_dense"):
            return self._answer if args[0].dtype == torch.bool else 0
        return func(*args, **(kwargs or {}))


def pretend(network: nn.Module) -> None:
    """Put the network on the pretended GPU."""
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, x in tensors.items():
                if x is not None:
                    moved = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
                    tensors[name] = nn.Parameter(moved, requires_grad=False) if tensors is module._parameters else moved


def fastreal(network: FastRealVSR, frames: list[Tensor]) -> Iterator[Write]:
    hidden = network.propagate(frames[0], None, None)
    hidden = network.propagate(frames[1], frames[0], hidden)
    yield lambda planes: network.render(hidden, frames[1], planes)


def skip(network: SkipVSR, frames: list[Tensor]) -> Iterator[Write]:
    yield from network.chunk(frames, range(1, 3))


def mia(network: MIAVSR, frames: list[Tensor]) -> Iterator[Write]:
    for frame, features in zip(frames[1:], network.features(frames, range(1, 3)), strict=True):
        yield lambda planes, frame=frame, features=features: network.render(features, frame, planes)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Run, set[str]]] = {
    "FastReal compact": (lambda: FastRealVSR(COMPACT), fastreal, {"hidden_state_attention", "flow_warp"}),
    "FastReal full size": (lambda: FastRealVSR(FastRealConfig()), fastreal, {"flow_warp"}),
    "BasicVSR": (SkipVSR, skip, {"flow_warp"}),
    "Skip": (lambda: SkipVSR(threshold=0.5), skip, {"block_residual", "flow_warp"}),
    "Skip in patches": (lambda: SkipVSR(threshold=0.5, mode="patch"), skip, {"block_residual", "flow_warp"}),
    "MIA without masks": (
        lambda: MIAVSR(12, (2,), (2,), 16, use_mask=False),
        mia,
        {"masked_window_attention", "flow_warp"},
    ),
    "MIA": (lambda: MIAVSR(12, (2,), (2,), 16), mia, {"masked_window_attention", "flow_warp"}),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("answer", [True, False])
def test_a_network_stays_on_its_gpu_and_takes_the_kernels(
    name: str, dtype: torch.dtype, answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    make, run, kernels = NETWORKS[name]
    network = make().eval().requires_grad_(False)
    if dtype == torch.float16:
        network.half()
    with FakeTensorMode(), torch.inference_mode(), Quarter(answer) as asked:
        pretend(network)
        frames = [torch.empty(1, 3, HEIGHT, WIDTH, dtype=dtype, device="cuda") for _ in range(3)]
        picture = torch.empty(3, 4 * HEIGHT, 4 * WIDTH, dtype=dtype, device="cuda")
        written = [write(picture.unbind()) for write in run(network, frames)]
    assert written
    assert asked.kernels == kernels
