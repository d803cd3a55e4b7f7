"""Recurrent networks in ONNX Runtime, on devices of any vendor. Import it only where that back end is asked for."""

import functools
import hashlib
import importlib.metadata
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from vsvsr.engine.device import gpus
from vsvsr.engine.memory import is_out_of_memory
from vsvsr.errors import UserError, check, shown
from vsvsr.files import written_whole
from vsvsr.weights import folder

_MEMORY = {
    "TensorrtExecutionProvider": "cuda",
    "CUDAExecutionProvider": "cuda",
    "MIGraphXExecutionProvider": "cpu",
    "DmlExecutionProvider": "dml",
    "OpenVINOExecutionProvider": "cpu",
    "CoreMLExecutionProvider": "cpu",
}
"""Providers for GPUs, the best first, and where states are kept, as ONNX Runtime names devices; ``cpu`` where it can
keep nothing on the provider's."""

_TYPES = {torch.float32: np.float32, torch.float16: np.float16}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Provider:
    """What ONNX Runtime computes with.

    Attributes:
        name: of the execution provider.
        index: of the device; -1 for the CPU.
    """

    name: str
    index: int

    @property
    def memory(self) -> str:
        """Where states are kept, as ONNX Runtime names devices."""
        return "cpu" if self.index < 0 else _MEMORY[self.name]

    @property
    def described(self) -> str:
        """What decides about the last bits of a result."""
        device = self.torch_device()
        if device.type == "cuda":
            place = f" on {torch.cuda.get_device_name(device)}"
        else:
            place = f", {torch.get_num_threads()} threads" if self.index < 0 else f" on device {self.index}"
        return f"onnxruntime {_onnxruntime().__version__}, {self.name.removesuffix('ExecutionProvider')}{place}"

    def torch_device(self) -> torch.device:
        """Where frames and pictures are torch's: on the same GPU if torch can use it, else on the host."""
        shared = self.memory == "cuda" and any(gpu.index == self.index and gpu.problem is None for gpu in gpus())
        return torch.device("cuda", self.index) if shared else torch.device("cpu")

    def options(self, dtype: torch.dtype) -> dict[str, str]:
        """What the provider is told: to choose nothing by timing, and to compute in ``dtype``, maybe with TF32."""
        half = dtype == torch.float16
        device = {"device_id": str(self.index)}
        if self.name == "OpenVINOExecutionProvider":
            place = "CPU" if self.index < 0 else f"GPU.{self.index}"
            return {"device_type": place, "precision": "FP16" if half else "FP32"}
        if self.name == "TensorrtExecutionProvider":
            # It chooses by timing, whatever it is told: what it chose is kept.
            _folder().mkdir(parents=True, exist_ok=True)
            engines = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(_folder())}
            return {**device, **engines, "trt_fp16_enable": str(int(half))}
        if self.name == "CUDAExecutionProvider":
            return {**device, "cudnn_conv_algo_search": "HEURISTIC"}
        return {} if self.index < 0 or self.name == "CoreMLExecutionProvider" else device


def choose_provider(device_index: int | None) -> Provider:
    """The best provider that works: with -1 on the CPU, without an index on a GPU if there is one.

    Raises:
        UserError: ONNX Runtime is missing, or has nothing for the device that was asked for.
    """
    installed = _onnxruntime().get_available_providers()
    candidates = list(_candidates(installed, device_index))
    check(
        bool(candidates),
        "device_index",
        device_index,
        f"-1 (CPU); this onnxruntime has only {' and '.join(installed)}: for a GPU install onnxruntime-gpu, -directml, "
        "-openvino or -migraphx in its place",
    )
    problems = []
    for provider in candidates:
        problem = _problem(provider)
        if problem is None:
            return provider
        problems.append(f"{provider.name}: {problem}")
    raise UserError(f"device_index={device_index}: {'; '.join(problems)}; give device_index=-1 for the CPU")


def _candidates(installed: Sequence[str], device_index: int | None) -> Iterator[Provider]:
    if device_index is None or device_index >= 0:
        yield from (Provider(name, device_index or 0) for name in _MEMORY if name in installed)
    if device_index in (None, -1):
        on_cpu = ("OpenVINOExecutionProvider", "CPUExecutionProvider")
        yield from (Provider(name, -1) for name in on_cpu if name in installed)


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError('backend="onnx" needs onnxruntime; run: pip install "vsvsr[onnx]"') from None
    return onnxruntime


@functools.cache
def _problem(provider: Provider) -> str | None:
    """What keeps an installed provider from computing; None if nothing does."""
    try:
        from onnx import TensorProto, helper
    except ImportError:
        raise UserError('backend="onnx" needs onnx; run: pip install "vsvsr[onnx]"') from None

    places = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", places[:1], places[1:])
    probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)
    try:
        (given,) = _session(probe.SerializeToString(), provider, torch.float32).run(None, {"x": np.ones(1, np.float32)})
    except Exception as error:  # a library that is missing, a driver, a device: each raises something else
        return shown(str(error))
    return None if given[0] == -1 else f"-1 came out as {given[0]}"


def _session(model: Path | bytes, provider: Provider, dtype: torch.dtype, **sizes: int) -> Any:
    """A session that runs nowhere but on ``provider``, save for operations that it lacks.

    Raises:
        UserError: it cannot be had; and whatever ONNX Runtime raises.
    """
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, too
    options.use_deterministic_compute = True
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin take the processor from everything beside them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider.memory == "dml":  # it can do without only
        options.enable_mem_pattern = False
    for name, size in sizes.items():
        options.add_free_dimension_override_by_name(name, size)
    wanted = [(provider.name, provider.options(dtype))]
    session = runtime.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=wanted)
    if provider.name not in session.get_providers():
        raise UserError("it is installed, but does not start here; its own libraries or the driver may be missing")
    return session


_open: WeakValueDictionary[tuple[object, ...], Any] = WeakValueDictionary()
"""Sessions that filters have at the moment: several can share one."""


class _Sized:
    """Sessions of one model, one for each size of frames: providers work best when they know the size."""

    def __init__(self, model: Path, provider: Provider, dtype: torch.dtype) -> None:
        self._model = model
        self._provider = provider
        self._dtype = dtype
        self._sessions: dict[tuple[int, int], Any] = {}

    def of(self, height: int, width: int) -> Any:
        """The session for frames of this size."""
        if (height, width) not in self._sessions:
            key = (self._model, self._provider, height, width, torch.get_num_threads())
            self._sessions[height, width] = _open.get(key) or self._made(height, width)
            _open[key] = self._sessions[height, width]
        return self._sessions[height, width]

    def _made(self, height: int, width: int) -> Any:
        try:
            return _session(self._model, self._provider, self._dtype, height=height, width=width)
        except Exception as error:
            failure = _failure(error)
            if is_out_of_memory(failure):
                raise failure from None
            raise UserError(f"{self._provider.described} refuses {self._model}: {failure}") from None


@dataclass(frozen=True, slots=True)
class OnnxState:
    """A hidden state where the provider keeps it.

    Attributes:
        value: an ``OrtValue``, ``(1, channels, h, w)``.
        nbytes: what it takes.
    """

    value: Any
    nbytes: int


class OnnxNetwork:
    """A recurrent network from two ONNX files, as `vsvsr.models.fastreal.step` writes them.

    The provider makes the states, and they stay in its memory. Frames and pictures are torch's; the provider gets their
    addresses.

    Args:
        propagate: of `Propagate`.
        picture: of `Picture`.
        provider: what computes.
        dtype: of all tensors.
        scale: output pixels per input pixel in each direction.
        channels: of the state.

    Attributes:
        device: where frames and pictures are, for torch.
        dtype: as given.
        on_cpu: whether the processor computes.
    """

    def __init__(
        self, propagate: Path, picture: Path, provider: Provider, dtype: torch.dtype, *, scale: int, channels: int
    ) -> None:
        self.scale = scale
        self.device = provider.torch_device()
        self.dtype = dtype
        self.on_cpu = provider.index < 0
        self._provider = provider
        self._channels = channels
        self._propagate = _Sized(propagate, provider, dtype)
        self._picture = _Sized(picture, provider, dtype)

    def prepare(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Open what frames of these heights and widths need.

        Raises:
            UserError: the provider refuses the network.
            torch.OutOfMemoryError: the device's memory is too small for it.
        """
        for size in sizes:
            for model in (self._propagate, self._picture):
                model.of(*size)

    def propagate(self, frame: Tensor, previous: Tensor | None, hidden: OnnxState | None) -> OnnxState:
        """See `Network.propagate`."""
        session = self._propagate.of(*frame.shape[-2:])
        binding = session.io_binding()
        inputs = {"frame": frame, "previous": frame if previous is None else previous, "warm": frame.new_ones(1)}
        shape = (1, self._channels, *frame.shape[-2:])
        if hidden is None:
            inputs |= {"state": frame.new_zeros(shape), "warm": frame.new_zeros(1)}
        else:
            binding.bind_ortvalue_input("state", hidden.value)
        binding.bind_output("next_state", self._provider.memory, max(self._provider.index, 0))
        _run(session, binding, inputs, {})
        (made,) = binding.get_outputs()
        return OnnxState(made, torch.Size(shape).numel() * self.dtype.itemsize)

    def render(self, hidden: OnnxState, frame: Tensor, planes: Sequence[Tensor]) -> None:
        """See `Network.render`."""
        height, width = frame.shape[-2:]
        picture = torch.empty((1, 3, height * self.scale, width * self.scale), dtype=self.dtype, device=frame.device)
        session = self._picture.of(height, width)
        binding = session.io_binding()
        binding.bind_ortvalue_input("state", hidden.value)
        _run(session, binding, {"frame": frame}, {"picture": picture})
        for plane, channel in zip(planes, picture[0], strict=True):
            plane.copy_(channel[: plane.shape[0], : plane.shape[1]])


def _run(session: Any, binding: Any, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    """Run a session on torch's memory beside what is bound already; returns when the results are there.

    Raises:
        RuntimeError: it failed.
    """
    packed = {name: tensor.contiguous() for name, tensor in inputs.items()}  # kept until the end of the run
    for bind, tensors in ((binding.bind_input, packed), (binding.bind_output, outputs)):
        for name, x in tensors.items():
            bind(name, x.device.type, x.device.index or 0, _TYPES[x.dtype], tuple(x.shape), x.data_ptr())
    for device in {x.device for x in packed.values() if x.is_cuda}:
        torch.cuda.current_stream(device).synchronize()  # the provider has a stream of its own
    try:
        binding.synchronize_inputs()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
    except Exception as error:
        raise _failure(error) from None


def _failure(error: Exception) -> RuntimeError:
    """What torch would raise; ONNX Runtime's own exceptions are of no common kind."""
    text = str(error)
    kind = torch.OutOfMemoryError if is_out_of_memory(RuntimeError(text)) else RuntimeError
    return kind(shown(text))


def kept(weights: Path, dtype: torch.dtype, form: str, write: Callable[[Path], None]) -> Path:
    """A file that is made of weights, in the cache folder; made where it is not there.

    Args:
        weights: file of the weights.
        dtype: of the tensors.
        form: what of the network it holds.
        write: writes it.

    Raises:
        UserError: the folder cannot be written.
    """
    versions = [f"{package} {importlib.metadata.version(package)}" for package in ("vsvsr", "torch")]
    content = hashlib.sha256(weights.read_bytes()).hexdigest()
    key = hashlib.sha256("\n".join((content, str(dtype), form, *versions)).encode()).hexdigest()
    path = _folder() / f"{form}-{key[:32]}.onnx"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path.parent} cannot be written: {error.strerror}") from None
        _log.warning("writing the network as ONNX, once for these weights: %s", path)
        with written_whole(path) as partial:
            write(partial)
    return path


def _folder() -> Path:
    return folder() / "onnx"
