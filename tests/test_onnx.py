"""FastReal in ONNX Runtime: the network's ONNX forms, and the back end on the CPU provider.

The conformance suite runs over it, too.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import vapoursynth as vs
from torch import Tensor

from tests.pixels import planes
from vsvsr import weights
from vsvsr.cli.app import app
from vsvsr.engine import onnx
from vsvsr.engine.onnx import Provider, choose_provider
from vsvsr.engine.recurrent import RecurrentNetwork
from vsvsr.engine.tiling import TileGrid
from vsvsr.engine.transfer import HostTransfer
from vsvsr.errors import UserError
from vsvsr.models.fastreal import FastRealConfig, FastRealVSR, load
from vsvsr.models.fastreal.step import Step, write_onnx

runtime = pytest.importorskip("onnxruntime")

Monkey = pytest.MonkeyPatch
CPU = Provider("CPUExecutionProvider", -1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: Monkey) -> Path:
    """A folder for files that are kept, which comes to be when it is needed."""
    monkeypatch.setattr(onnx, "_folder", lambda: tmp_path / "cache" / "onnx")
    return tmp_path / "cache" / "onnx"


@pytest.fixture
def network(tiny_fastreal: Path) -> FastRealVSR:
    return load(tiny_fastreal).network


def run(path: Path, inputs: tuple[str, ...], given: tuple[Tensor, ...]) -> list[Tensor]:
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(x) for x in session.run(None, dict(zip(inputs, (x.numpy() for x in given), strict=True)))]


def near(given: Tensor, wanted: Tensor, distance: float = 1e-4) -> bool:
    return given.shape == wanted.shape and float((given - wanted).abs().max() / wanted.abs().max()) < distance


def test_a_step_takes_frames_of_any_size_cold_and_warm(network: FastRealVSR, tmp_path: Path) -> None:
    path = tmp_path / "step.onnx"
    write_onnx(Step(network), path)
    torch.manual_seed(0)
    for height, width in ((16, 16), (37, 53)):
        first, second, _ = torch.rand(3, 1, 3, height, width)
        with torch.inference_mode():
            wanted = [network.propagate(first, None, None)]
            wanted += [network.propagate(second, first, wanted[0])]
            anything = torch.rand_like(wanted[0])
            state, picture = run(path, Step.INPUTS, (first, second, anything, torch.zeros(1)))
            assert near(state, wanted[0])
            assert near(picture, network.reconstruct(wanted[0], first))
            state, picture = run(path, Step.INPUTS, (second, first, wanted[0], torch.ones(1)))
            assert near(state, wanted[1])
            assert near(picture, network.reconstruct(wanted[1], second))


def test_flow_by_spynet_is_written_for_frames_of_any_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = FastRealConfig(channels=8, rb1_blocks=1, rb2_blocks=1, key_channels=4, flow="spynet")
    network = FastRealVSR(config).eval().requires_grad_(False)
    write_onnx(Step(network), tmp_path / "step.onnx")
    for height, width in ((64, 64), (65, 65), (90, 128), (33, 40)):
        first, second = torch.rand(2, 1, 3, height, width)
        with torch.inference_mode():
            before = network.propagate(first, None, None)
            wanted = network.propagate(second, first, before)
        state, picture = run(tmp_path / "step.onnx", Step.INPUTS, (second, first, before, torch.ones(1)))
        assert near(state, wanted)
        assert near(picture, network.reconstruct(wanted, second))


def test_half_precision_is_written_too(network: FastRealVSR, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network.half()
    first, second = torch.rand(2, 1, 3, 24, 32, dtype=torch.float16)
    with torch.inference_mode():
        hidden = network.propagate(first, None, None)
        wanted = network.propagate(second, first, hidden)
        picture = network.reconstruct(wanted, second)
    path = tmp_path / "step.onnx"
    write_onnx(Step(network), path)
    given = run(path, Step.INPUTS, (second, first, hidden, torch.ones(1, dtype=torch.float16)))
    assert [x.dtype for x in given] == [torch.float16] * 2
    assert near(given[0].float(), wanted.float(), 1e-2)
    assert near(given[1].float(), picture.float(), 1e-2)


@pytest.mark.parametrize("arguments", [{}, {"tile": [32, 32], "tile_pad": 8}], ids=["whole", "in tiles"])
def test_pictures_are_those_of_torch_within_a_ten_thousandth(arguments: dict[str, object], bikes: vs.VideoNode) -> None:
    """Of published weights: the small network of the tests amplifies rounding from frame to frame."""
    clip = bikes[:8].resize.Bicubic(width=56, height=48)

    def pictures(backend: str) -> np.ndarray:
        output = clip.vsvsr.FastReal(model="fastreal-compact-x4", backend=backend, device_index=-1, **arguments)
        return np.stack([planes(frame) for frame in output.frames(close=True)])

    given, wanted = pictures("onnx"), pictures("torch")
    assert 0 < np.abs(given - wanted).max() < 1e-4


def test_files_are_written_once_for_each_weights_and_only_whole(
    cache: Path, tiny_fastreal: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = []

    def write(path: Path) -> None:
        written.append(path)
        path.write_bytes(b"network")

    def fail(path: Path) -> None:
        write(path)
        raise OSError(28, "No space left on device")

    other = tmp_path / "other.safetensors"
    other.write_bytes(tiny_fastreal.read_bytes() + b" ")
    with pytest.raises(UserError, match="No space left on device"):
        onnx.kept(tiny_fastreal, torch.float32, "picture", fail)
    assert list(cache.iterdir()) == []
    first = onnx.kept(tiny_fastreal, torch.float32, "picture", write)
    assert onnx.kept(tiny_fastreal, torch.float32, "picture", fail) == first
    assert first.read_bytes() == b"network"
    assert len(written) == 2
    assert caplog.messages[-1] == f"writing the network as ONNX, once for these weights: {first}"
    others = {
        onnx.kept(other, torch.float32, "picture", write),
        onnx.kept(tiny_fastreal, torch.float16, "picture", write),
        onnx.kept(tiny_fastreal, torch.float32, "propagate", write),
    }
    assert len(others | {first}) == 4 == len(list(cache.iterdir()))


def test_a_file_in_the_cache_that_is_damaged_is_one_line(
    bikes: vs.VideoNode, tiny_fastreal: Path, cache: Path, monkeypatch: Monkey
) -> None:
    monkeypatch.setattr("vsvsr.models.fastreal.step.write_onnx", lambda form, path: path.write_bytes(b"none"))
    with pytest.raises(vs.Error) as caught:
        bikes.vsvsr.FastReal(model_path=str(tiny_fastreal), backend="onnx", device_index=-1)
    assert str(caught.value).startswith("FastReal: onnxruntime ")
    assert f" refuses {cache / 'propagate-'}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tiles_are_chosen_where_the_memory_of_a_provider_runs_out(
    bikes: vs.VideoNode, tiny_fastreal: Path, monkeypatch: Monkey
) -> None:
    session = onnx._session

    def small(model: Path | bytes, provider: Provider, dtype: torch.dtype, **sizes: int) -> Any:
        if sizes.get("width", 0) > 70:
            raise ValueError(f"{'x' * 400}: Failed to allocate memory for requested buffer of size 123")
        return session(model, provider, dtype, **sizes)

    monkeypatch.setattr(onnx, "_session", small)
    clip = bikes[:2].resize.Bicubic(width=96, height=40)
    output = clip.vsvsr.FastReal(model_path=str(tiny_fastreal), backend="onnx", device_index=-1)
    stats = vs.core.vsvsr.Stats(output)
    assert (stats["tile_width"], stats["tile_height"]) == (48, 0)
    output.get_frame(1).close()


@pytest.mark.parametrize("package", ["onnxruntime", "onnx"])
def test_a_package_that_is_missing_is_named(
    package: str, bikes: vs.VideoNode, tiny_fastreal: Path, monkeypatch: Monkey
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    onnx._problem.cache_clear()
    with pytest.raises(vs.Error) as caught:
        bikes.vsvsr.FastReal(model_path=str(tiny_fastreal), backend="onnx")
    assert str(caught.value) == f'FastReal: backend="onnx" needs {package}; run: pip install "vsvsr[onnx]"'


class TestProviders:
    """Of packages that are not installed here: what they say is pretended."""

    GPU = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")

    @pytest.fixture(autouse=True)
    def installed(self, monkeypatch: Monkey) -> Any:
        def pretend(*names: str, broken: tuple[str, ...] = ()) -> None:
            fake = SimpleNamespace(get_available_providers=lambda: list(names), __version__="9.8")
            monkeypatch.setattr(onnx, "_onnxruntime", lambda: fake)
            monkeypatch.setattr(onnx, "_problem", lambda provider: "no driver" if provider.name in broken else None)

        return pretend

    @pytest.mark.parametrize("index", [None, 0, 1])
    def test_the_best_for_a_gpu_that_works_is_taken(self, index: int | None, installed: Any) -> None:
        installed(*self.GPU)
        assert choose_provider(index) == Provider("TensorrtExecutionProvider", index or 0)
        installed(*self.GPU, broken=self.GPU[:1])
        assert choose_provider(index) == Provider("CUDAExecutionProvider", index or 0)
        installed("DmlExecutionProvider", "CPUExecutionProvider")
        assert choose_provider(index) == Provider("DmlExecutionProvider", index or 0)

    def test_the_cpu_is_taken_where_it_is_wanted_or_nothing_else_works(self, installed: Any) -> None:
        installed(*self.GPU)
        assert choose_provider(-1) == Provider("CPUExecutionProvider", -1)
        installed(*self.GPU, broken=self.GPU[:2])
        assert choose_provider(None) == Provider("CPUExecutionProvider", -1)
        installed("OpenVINOExecutionProvider", "CPUExecutionProvider")
        assert choose_provider(-1) == Provider("OpenVINOExecutionProvider", -1)

    def test_a_gpu_that_was_asked_for_and_cannot_be_had_is_an_error(self, installed: Any) -> None:
        installed("CPUExecutionProvider")
        with pytest.raises(UserError) as caught:
            choose_provider(0)
        assert str(caught.value) == (
            "device_index=0 is not possible; allowed: -1 (CPU); this onnxruntime has only CPUExecutionProvider: for a "
            "GPU install onnxruntime-gpu, -directml, -openvino or -migraphx in its place"
        )
        installed(*self.GPU, broken=self.GPU[:2])
        with pytest.raises(UserError) as caught:
            choose_provider(1)
        assert str(caught.value) == (
            "device_index=1: TensorrtExecutionProvider: no driver; CUDAExecutionProvider: no driver; "
            "give device_index=-1 for the CPU"
        )

    def test_two_providers_are_described_as_two(self, installed: Any) -> None:
        installed(*self.GPU)
        described = [Provider(name, 0).described for name in self.GPU[:2]]
        assert described == ["onnxruntime 9.8, Tensorrt on device 0", "onnxruntime 9.8, CUDA on device 0"]
        assert choose_provider(-1).described == f"onnxruntime 9.8, CPU, {torch.get_num_threads()} threads"


def test_a_provider_that_does_not_start_is_noticed_although_onnxruntime_goes_on_without(monkeypatch: Monkey) -> None:
    """It takes the CPU, and warns."""
    monkeypatch.setattr(Provider, "options", lambda self, dtype: {})
    problem = onnx._problem(Provider("CUDAExecutionProvider", 0))
    assert problem == "it is installed, but does not start here; its own libraries or the driver may be missing"
    assert onnx._problem(CPU) is None


class FakeSession:
    """A session of a GPU: notes what is bound where, and makes states that are only names."""

    def __init__(self) -> None:
        self.bound: list[tuple[Any, ...]] = []

    def io_binding(self) -> "FakeSession":
        return self

    def bind_input(self, name: str, *place: Any) -> None:
        self.bound.append((name, *place[:2]))

    def bind_output(self, name: str, *place: Any) -> None:
        self.bound.append((name, *place[:2]))

    def bind_ortvalue_input(self, name: str, value: object) -> None:
        self.bound.append((name, value))

    def synchronize_inputs(self) -> None: ...

    def synchronize_outputs(self) -> None: ...

    def run_with_iobinding(self, binding: "FakeSession") -> None:
        assert binding is self

    def get_outputs(self) -> list[str]:
        return [f"state {len(self.bound)}"]


@pytest.mark.parametrize(("name", "memory"), [("DmlExecutionProvider", "dml"), ("MIGraphXExecutionProvider", "cpu")])
def test_a_state_stays_in_the_memory_of_its_provider(name: str, memory: str, monkeypatch: Monkey) -> None:
    sessions: dict[str, FakeSession] = {}

    def session(model: Path, provider: Provider, dtype: torch.dtype, **sizes: int) -> FakeSession:
        assert sizes == {"height": 24, "width": 32}
        return sessions.setdefault(model.name, FakeSession())

    monkeypatch.setattr(onnx, "_session", session)
    network = onnx.OnnxNetwork(
        Path("propagate"), Path("picture"), Provider(name, 1), torch.float16, scale=4, channels=8
    )
    frame = torch.zeros(1, 3, 24, 32, dtype=torch.float16)
    first = network.propagate(frame, None, None)
    assert (first.value, first.nbytes) == ("state 5", 8 * 24 * 32 * 2)
    network.propagate(frame, frame, first)
    network.render(first, frame, torch.zeros(3, 96, 128).unbind())
    cold, warm = sessions["propagate"].bound[:5], sessions["propagate"].bound[5:]
    assert cold[0] == warm[1] == ("next_state", memory, 1)
    assert ("state", "cpu", 0) in cold
    assert warm[0] == ("state", "state 5")
    assert sessions["picture"].bound == [("state", "state 5"), ("frame", "cpu", 0), ("picture", "cpu", 0)]


def test_only_networks_of_torch_are_recorded_as_cuda_graphs(network: FastRealVSR, monkeypatch: Monkey) -> None:
    recorded = []
    monkeypatch.setattr("vsvsr.engine.recurrent.CudaCapture", lambda device: recorded.append(device))
    monkeypatch.setattr("vsvsr.engine.recurrent.transfer", lambda device, dtype: HostTransfer(dtype))
    device, tiles = torch.device("cuda", 0), TileGrid(32, 24, (0, 0), 0, smallest=8, scale=4)
    other = onnx.OnnxNetwork(Path("propagate"), Path("picture"), CPU, torch.float32, scale=4, channels=8)
    RecurrentNetwork(other, device, torch.float32, tiles)
    assert recorded == []
    RecurrentNetwork(network, device, torch.float32, tiles)
    assert recorded == [device]


class TestExport:
    @staticmethod
    def export(monkeypatch: Monkey, *arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["vsvsr", "export", *map(str, arguments)])
        return app()

    def test_a_step_says_what_goes_in_and_comes_out(
        self, tiny_fastreal: Path, tmp_path: Path, monkeypatch: Monkey, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "step.onnx"
        assert self.export(monkeypatch, tiny_fastreal, path) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in lines[:6]] == [
            ["in", "frame"], ["in", "previous"], ["in", "state"], ["in", "warm"], ["out", "next_state"],
            ["out", "picture"],
        ]  # fmt: skip
        assert "cold 15 frames before" in lines[-1]
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        about = session.get_modelmeta().custom_metadata_map
        assert about["weights_sha256"] == weights.sha256(tiny_fastreal)
        assert (about["scale"], about["segment"], about["warmup"]) == ("4", "240", "15")
        assert {place.name for place in (*session.get_inputs(), *session.get_outputs())} < set(about)
        assert session.get_inputs()[2].shape == [1, 8, "height", "width"]
        assert self.export(monkeypatch, tiny_fastreal, path) == 1
        assert capsys.readouterr().err == f"vsvsr: {path} exists already; give --overwrite to replace it\n"

    def test_a_window_is_the_recurrence_from_its_first_frame(
        self, tiny_fastreal: Path, network: FastRealVSR, bikes: vs.VideoNode, tmp_path: Path, monkeypatch: Monkey
    ) -> None:
        path = tmp_path / "window.onnx"
        assert self.export(monkeypatch, tiny_fastreal, path, "--window", "2") == 0
        torch.manual_seed(0)
        frames = torch.rand(1, 2, 3, 30, 41)
        with torch.inference_mode():
            wanted = network(frames)[:, -1]
        (picture,) = run(path, ("input",), (frames.reshape(1, 6, 30, 41),))
        assert near(picture, wanted)
        if hasattr(vs.core, "ort"):  # vapoursynth-mlrt-ort is installed
            clips = [bikes[:4], bikes[1:5]]
            through = planes(vs.core.ort.Model(clips, network_path=str(path)).get_frame(3))
            clip = torch.from_numpy(np.stack([planes(one.get_frame(3)) for one in clips]))[None]
            with torch.inference_mode():
                assert near(torch.from_numpy(through), network(clip)[0, -1])

    def test_without_onnx_the_extra_is_named(
        self, tiny_fastreal: Path, tmp_path: Path, monkeypatch: Monkey, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnx", None)
        assert self.export(monkeypatch, tiny_fastreal, tmp_path / "step.onnx") == 1
        assert capsys.readouterr().err == 'vsvsr: vsvsr export needs onnx; run: pip install "vsvsr[onnx]"\n'
