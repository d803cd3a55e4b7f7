"""The fused kernels without a GPU: results in Triton's interpreter, resources of the compiled code.

Only the test at the end runs kernels on a GPU, where there is one.
"""

import contextlib
import ctypes
import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.cases import GPUOf
from vsvsr.ops import dispatch, hidden_state_attention, masked_window_attention
from vsvsr.ops.block_skip import BlockWeights, SkipGrid, block_skip_reference, fused_block_residual
from vsvsr.ops.dispatch import runs_kernels
from vsvsr.ops.hidden_state_attention import (
    fused_hidden_state_attention,
    hidden_state_attention_reference,
    member_filters,
)
from vsvsr.ops.masked_window_attention import fused_masked_window_attention, masked_window_attention_reference
from vsvsr.ops.unpack_planes import HIGHEST, LOWEST, _kernel_compiles, unpack_planes, unpack_planes_reference

pytest.importorskip("triton", reason="Triton exists for Linux only")

from vsvsr.triton_kernels import unpack_planes as unpack_planes_kernel
from vsvsr.triton_kernels.ahead_of_time import (
    DTYPES,
    LAUNCHES,
    SHARED_MEMORY,
    Launch,
    compile_cuda_c,
    flow_warp_launch,
    hidden_state_attention_launch,
)


def assert_fits(launch: Launch, capability: int) -> None:
    usage = launch.usage(capability)
    assert usage.stack == 0
    assert 0 < usage.registers <= 255
    assert usage.shared <= SHARED_MEMORY[capability]


def test_every_kernel_gives_the_plain_forms_result_in_the_interpreter() -> None:
    checks = Path(__file__).with_name("kernels_in_interpreter.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=checks.parents[1])
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "skipped" not in ran.stdout


def test_every_kernel_compiles_as_the_networks_launch_it() -> None:
    command = [sys.executable, "-m", "tests.kernels_as_launched", "90"]
    root = Path(__file__).parents[1]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert {line.split()[0] for line in ran.stdout.splitlines()} == {
        LAUNCHES[name]("fp16").kernel.__name__ for name in LAUNCHES
    }


@pytest.mark.parametrize("window", [8, 16])
def test_windows_too_large_for_shared_memory_are_computed_by_the_plain_form(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = []
    module = sys.modules["vsvsr.ops.masked_window_attention"]
    monkeypatch.setattr(module, "runs_kernels", lambda *tensors: True)
    monkeypatch.setattr(module, "fused_masked_window_attention", lambda *given, **more: launched.append(window))
    tokens, bias = torch.rand(1, 3, 16, 16, 64), torch.rand(1, window**2, 3 * window**2)
    masked_window_attention(tokens, torch.rand(192, 64), torch.rand(192), bias, window=window)
    assert launched == [8] * (window == 8)


@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize("name", LAUNCHES)
def test_every_kernel_compiles_without_spills(name: str, capability: int) -> None:
    assert_fits(LAUNCHES[name]("fp16"), capability)
    assert_fits(LAUNCHES[name]("fp32"), capability)


@pytest.mark.parametrize(
    "launch",
    [
        *(launch("bf16") for launch in LAUNCHES.values()),
        hidden_state_attention_launch("fp16", channels_last=True),
        hidden_state_attention_launch("fp16", channels=16),
        flow_warp_launch("fp32", channels=3, border=True, channels_last=False),
        flow_warp_launch("fp32", channels=1, border=True, channels_last=False),
    ],
)
def test_other_forms_compile_without_spills(launch: Launch) -> None:
    assert_fits(launch, 80)


@pytest.mark.parametrize("name", ["masked_window_attention", "block_skip, first convolution"])
@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_products_in_half_precision_run_on_the_tensor_cores(name: str, capability: int) -> None:
    assert LAUNCHES[name]("fp16").tensor_core_instructions(capability) > 0


CUDA_C_TYPES = list(itertools.product(unpack_planes_kernel.TYPES, repeat=2))


class TestUnpackPlanes:
    """The kernel in CUDA C. CuPy launches it on a GPU; without one it is compiled, and its body runs as C++."""

    @pytest.mark.parametrize("capability", SHARED_MEMORY)
    @pytest.mark.parametrize(("planes", "frame"), CUDA_C_TYPES)
    def test_it_compiles_without_spills(self, planes: torch.dtype, frame: torch.dtype, capability: int) -> None:
        usage = compile_cuda_c(unpack_planes_kernel.source(planes, frame), capability)
        assert usage.stack == 0
        assert 0 < usage.registers <= 64

    def test_the_compilers_messages_are_raised(self) -> None:
        with pytest.raises(RuntimeError, match='identifier "nonsense" is undefined'):
            compile_cuda_c("__global__ void broken() { nonsense = 1; }", 80)

    HOST = """
    #define __global__
    struct { unsigned x; } blockIdx, blockDim, threadIdx;
    struct Half { _Float16 value; };
    static float load(float x) { return x; }
    static float load(Half x) { return x.value; }
    static bool finite(float x) { return __builtin_isfinite(x); }
    static void store(float *to, float x) { *to = x; }
    static void store(Half *to, float x) { to->value = x; }
    """
    LOOP = """
    extern "C" void run(const SOURCE *planes, RESULT *frame, unsigned char *non_finite, int height, int width,
                        int pitch, float lowest, float highest, unsigned threads)
    {
        blockDim.x = threads;
        for (blockIdx.x = 0; blockIdx.x * threads < height * width; blockIdx.x++)
            for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)
                unpack_planes(planes, frame, non_finite, height, width, pitch, lowest, highest);
    }
    """

    @pytest.mark.parametrize(("planes", "frame"), CUDA_C_TYPES)
    def test_its_body_run_as_cpp_gives_the_plain_forms_result(
        self, planes: torch.dtype, frame: torch.dtype, tmp_path: Path
    ) -> None:
        types = [unpack_planes_kernel.TYPES[dtype] for dtype in (planes, frame)]
        code = f"{self.HOST}\n#define SOURCE {types[0]}\n#define RESULT {types[1]}\n"
        (tmp_path / "kernel.cpp").write_text(code + unpack_planes_kernel.KERNEL + self.LOOP)
        command = [os.environ.get("CXX", "c++"), "-shared", "-fPIC", "-o", "kernel.so", "kernel.cpp"]
        subprocess.run(command, cwd=tmp_path, check=True)
        library = ctypes.CDLL(str(tmp_path / "kernel.so"))
        torch.manual_seed(0)
        rows = (torch.randn(3, 7, 24) * 2).to(planes)
        bounds = ctypes.c_float(LOWEST), ctypes.c_float(HIGHEST)
        for sample in (0.5, float("nan"), float("inf"), float("-inf")):
            rows[1, 3, 18] = sample
            rows[:, :, 19:] = float("nan")
            result, non_finite = torch.full((7 * 19 * 3 + 8,), 12345.0, dtype=frame), torch.zeros(1, dtype=torch.uint8)
            address = [ctypes.c_void_p(x.data_ptr()) for x in (rows, result, non_finite)]
            library.run(*address, 7, 19, 24, *bounds, unpack_planes_kernel.THREADS)
            expected = unpack_planes_reference(rows, 19, frame)
            assert torch.equal(result[:-8].view(1, 7, 19, 3).permute(0, 3, 1, 2), expected[0])
            assert bool((result[-8:] == 12345.0).all())
            assert bool(non_finite) == bool(expected[1]) == (sample != 0.5)

    def test_without_cupy_or_with_one_that_cannot_compile_the_plain_form_runs(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken:
            def compile(self) -> None:
                raise RuntimeError("CuPy failed to load libnvrtc.so.12")

        def absent(planes: torch.dtype, frame: torch.dtype) -> None:
            raise ModuleNotFoundError("No module named 'cupy'")

        for kernel in (absent, lambda planes, frame: Broken()):
            _kernel_compiles.cache_clear()
            monkeypatch.setattr(unpack_planes_kernel, "kernel", kernel)
            with FakeTensorMode(), Called() as called:
                unpack_planes(torch.empty(3, 7, 24, device="cuda"), 19, torch.float16)
            assert "vsvsr::unpack_planes" not in called.names
        assert caplog.messages == ["frames are unpacked without CuPy: CuPy failed to load libnvrtc.so.12"]
        caplog.clear()
        _kernel_compiles.cache_clear()
        old = SimpleNamespace(__version__="13.6.0", cuda=SimpleNamespace(Stream=object))
        monkeypatch.setitem(sys.modules, "cupy", old)
        monkeypatch.setattr(unpack_planes_kernel, "kernel", lambda planes, frame: SimpleNamespace(compile=lambda: None))
        assert not _kernel_compiles(torch.float32, torch.float16)
        _kernel_compiles.cache_clear()
        assert caplog.messages == ["frames are unpacked without CuPy: CuPy 13.6.0 is older than 14"]

    def test_its_fake_form_has_the_layout_of_the_plain_form(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vsvsr.ops.unpack_planes._kernel_compiles", lambda planes, frame: True)
        with FakeTensorMode(), Called() as called:
            result = unpack_planes(torch.empty(3, 7, 24, device="cuda"), 19, torch.float16)
            expected = unpack_planes(torch.empty(3, 7, 24), 19, torch.float16)
        assert "vsvsr::unpack_planes" in called.names
        for x, shape in zip(result, ((1, 3, 7, 19), (1,)), strict=True):
            assert x.shape == shape
        for x, y in zip(result, expected, strict=True):
            assert (x.shape, x.stride(), x.dtype) == (y.shape, y.stride(), y.dtype)


class Called(TorchDispatchMode):
    """The names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


class TestDispatch:
    @pytest.mark.parametrize(
        ("device", "capability", "expected"),
        [("cpu", (9, 0), False), ("cuda", (7, 5), False), ("cuda", (8, 0), True), ("cuda", (12, 0), True)],
    )
    def test_kernels_run_on_gpus_with_what_they_need(
        self, device: str, capability: tuple[int, int], expected: bool, gpu_of: GPUOf
    ) -> None:
        gpu_of(capability)
        with FakeTensorMode():
            assert runs_kernels(torch.empty(2, device=device)) is expected

    def test_what_needs_a_gradient_stays_with_the_plain_form(self, gpu_of: GPUOf) -> None:
        gpu_of((8, 0))
        with FakeTensorMode():
            parameter = torch.empty(2, device="cuda", requires_grad=True)
            assert not runs_kernels(parameter)
            with torch.no_grad():
                assert runs_kernels(parameter)

    def test_without_triton_the_plain_form_runs(self, monkeypatch: pytest.MonkeyPatch, gpu_of: GPUOf) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        gpu_of((8, 0))
        with FakeTensorMode():
            assert not runs_kernels(torch.empty(2, device="cuda"))

    @pytest.mark.parametrize(("version", "runs"), [("3.5.1", False), ("3.6.0", True), ("4.0.0+git1", True)])
    def test_a_triton_that_the_kernels_were_not_tried_with_is_told_and_the_plain_form_runs(
        self,
        version: str,
        runs: bool,
        monkeypatch: pytest.MonkeyPatch,
        gpu_of: GPUOf,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("triton.__version__", version)
        gpu_of((8, 0))
        with FakeTensorMode():
            assert runs_kernels(torch.empty(2, device="cuda")) is runs
        told = ["PyTorch runs in place of the fused kernels: Triton 3.5.1 is older than 3.6"]
        assert caplog.messages == ([] if runs else told)

    def test_what_keeps_triton_from_launching_is_told_once_and_the_plain_form_runs(
        self, monkeypatch: pytest.MonkeyPatch, gpu_of: GPUOf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its driver compiles C when the first kernel is launched."""
        launch = dispatch.launch_problem
        gpu_of((8, 0))
        monkeypatch.setattr(dispatch, "launch_problem", launch)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())

        def answer(device: torch.device) -> int:
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nMore")

        monkeypatch.setattr("vsvsr.triton_kernels.probe.answer", answer)
        with FakeTensorMode():
            for _ in range(2):
                assert not runs_kernels(torch.empty(2, device="cuda"))
        assert caplog.messages == [
            "PyTorch runs in place of the fused kernels: RuntimeError: Failed to find C compiler. "
            "Please specify via CC environment variable."
        ]

    def test_every_device_is_tried_with_a_kernel_of_its_own(
        self, monkeypatch: pytest.MonkeyPatch, gpu_of: GPUOf
    ) -> None:
        launch = dispatch.launch_problem
        gpu_of((8, 0))
        tried = []
        monkeypatch.setattr(dispatch, "launch_problem", launch)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr("vsvsr.triton_kernels.probe.answer", lambda device: tried.append(device.index) or 42)
        for index in (0, 1, 0):
            assert dispatch.kernel_problem(torch.device("cuda", index)) is None
        assert tried == [0, 1]

    # Fake implementations answer below, so shapes and types are those that a GPU would give.

    @pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
    def test_hidden_state_attention_asks_for_the_kernel_where_it_runs(
        self, capability: tuple[int, int], gpu_of: GPUOf
    ) -> None:
        gpu_of(capability)
        with FakeTensorMode(), torch.no_grad(), torch.device("cuda"), Called() as called:
            query, value = torch.empty(1, 16, 5, 7).half(), torch.empty(1, 32, 5, 7).half()
            result = hidden_state_attention(query, query, value, torch.empty(3, 5, 5), torch.empty(5, 4))
        assert ("vsvsr::hidden_state_attention" in called.names) is (capability >= (8, 0))
        assert result.shape == value.shape
        assert result.dtype == torch.float16

    def test_masked_window_attention_asks_for_the_kernel_where_it_runs(self, gpu_of: GPUOf) -> None:
        gpu_of((8, 0))
        with FakeTensorMode(), torch.no_grad(), torch.device("cuda"), Called() as called:
            tokens, weight, bias = torch.empty(1, 3, 9, 10, 12), torch.empty(36, 12), torch.empty(36)
            result = masked_window_attention(tokens, weight, bias, torch.empty(2, 64, 192), shift=4)
        assert "vsvsr::masked_window_attention" in called.names
        assert result.shape == (90, 12)
        assert result.is_cuda

    @pytest.mark.parametrize(("active", "expected"), [(2, True), (4, False)])
    def test_block_skip_asks_for_the_kernel_unless_all_tiles_run(
        self, active: int, expected: bool, gpu_of: GPUOf
    ) -> None:
        gpu_of((8, 0))
        with FakeTensorMode(), torch.no_grad(), torch.device("cuda"), Called() as called:
            grid = SkipGrid(1, 20, 31, 16, torch.device("cuda"))
            pixels = grid.pixels(torch.empty(1, 8, 20, 31))
            block = BlockWeights(torch.empty(8, 8, 3, 3), torch.empty(8), torch.empty(8, 8, 3, 3), torch.empty(8))
            tiles = grid.everywhere if active == grid.count else grid.choose(torch.empty(1, 2, 2).bool())
            grid.block_skip_(pixels, torch.zeros_like(pixels), block, tiles)
        assert ("vsvsr::block_residual" in called.names) is expected
        # The host does not wait to know how many there are.
        assert not called.names & {"aten::nonzero", "aten::_local_scalar_dense", "aten::item"}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_hidden_state_attention_gives_the_plain_forms_result_on_a_gpu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 64, 67, 121, device="cuda").to(dtype)
    kernels = torch.rand(3, 5, 5, device="cuda")
    kernels /= kernels.sum((1, 2), keepdim=True)
    mix = torch.tensor([[2.0, -1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [2, 0, 0, -1], [0, 0, 0, 1]], device="cuda")
    expected = hidden_state_attention_reference(query.float(), key.float(), value.float(), kernels, mix)
    result = fused_hidden_state_attention(query, key, value, member_filters(kernels, mix))
    tolerance = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(result.float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shift", [0, 4])
def test_masked_window_attention_gives_the_plain_forms_result_on_a_gpu(dtype: torch.dtype, shift: int) -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 3, 67, 121, 120, device="cuda").to(dtype)
    weight, bias = (torch.randn(360, 120, device="cuda") / 11).to(dtype), torch.randn(360, device="cuda").to(dtype)
    position_bias = torch.randn(6, 64, 192, device="cuda").to(dtype)
    keep = torch.rand(2, 67, 121, device="cuda") < 0.25
    inputs = [x.float() for x in (tokens, weight, bias, position_bias)]
    expected = masked_window_attention_reference(*inputs, keep, shift=shift)
    result = fused_masked_window_attention(tokens, weight, bias, position_bias, keep, shift=shift)
    tolerance = 1e-4 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(result.float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_block_skip_gives_the_plain_forms_residual_on_a_gpu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    n, channels, height, width, tile = 2, 64, 67, 121, 16
    x, held = torch.randn(2, n, channels, height, width, device="cuda").to(dtype)
    weights = (torch.randn(2, channels, channels, 3, 3, device="cuda") / 24).to(dtype)
    biases = torch.randn(2, channels, device="cuda").to(dtype)
    block = BlockWeights(weights[0].float(), biases[0].float(), weights[1].float(), biases[1].float())
    active = torch.rand(n, 5, 8, device="cuda") < 0.4
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        _, expected = block_skip_reference(x.float(), held.float(), block, active, tile)
    pixels, residual = (maps.permute(0, 2, 3, 1).reshape(-1, channels) for maps in (x, held))
    tiles = active.flatten().to(torch.int8).argsort(descending=True, stable=True), active.sum()[None]
    first, second = BlockWeights(weights[0], biases[0], weights[1], biases[1]).by_tap
    fused_block_residual(pixels, residual, first, biases[0], second, biases[1], *tiles, height, width, tile)
    result = residual.view(n, height, width, channels).permute(0, 3, 1, 2)
    tolerance = 1e-4 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(result.float(), expected, atol=tolerance, rtol=tolerance)
