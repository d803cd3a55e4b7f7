"""Transfer to a GPU and back on simulated devices: order of copies and computing, behaviour when memory runs out.

Tests on a real GPU are in test_gpu.py.
"""

import contextlib
import gc
import itertools
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.cases import GPUOf, WeightsOf
from tests.test_planes import memory
from vsvsr.bridge import FilterInstance
from vsvsr.engine import memory as device_memory
from vsvsr.engine.chunked import ChunkedNetwork
from vsvsr.engine.device import choose_device, gpus
from vsvsr.engine.graph import CudaCapture, Recorder, copied
from vsvsr.engine.memory import feature_budget, fit_tiles, is_out_of_memory, rehearse, release
from vsvsr.engine.planes import Output, Planes, read
from vsvsr.engine.recurrent import RecurrentNetwork
from vsvsr.engine.tiling import TileGrid
from vsvsr.engine.transfer import PLACES, HostTransfer, PlainTransfer, StagedTransfer, transfer
from vsvsr.engine.worker import worker_of
from vsvsr.errors import UserError
from vsvsr.filters.clip import Clip
from vsvsr.filters.fastreal import FastRealSettings
from vsvsr.filters.fastreal import create as create_fastreal
from vsvsr.filters.registry import FILTERS
from vsvsr.filters.session import FilterSession
from vsvsr.models.fastreal import COMPACT, FastRealConfig, FastRealVSR
from vsvsr.models.fastreal import load as load_fastreal
from vsvsr.models.skipvsr import SkipVSR
from vsvsr.models.ultra import Upscaler
from vsvsr.streaming import Source

CPU = torch.device("cpu")


@dataclass
class Moment:
    """An event in a simulated stream."""

    stream: "PretendedCopies | None"
    copies: int = 0

    def synchronize(self) -> None:
        assert self.stream is not None
        self.stream.streams.synchronized.append(self)
        self.stream.run(self.copies)


@dataclass
class PretendedCopies:
    """Copies happen as late as allowed, when something waits for them.

    A copy that depends on computing must have waited for it.
    """

    streams: "PretendedStreams"
    started: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    done: int = 0
    waited_for: list[Moment] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def copy(self, target: Tensor, source: Tensor) -> None:
        assert self.streams.loose or self.streams.computed_last in [None, *self.waited_for]
        self.started.append((target, source))

    def queued(self) -> Moment:
        return Moment(self, len(self.started))

    def wait(self, event: Moment) -> None:
        self.waited_for.append(event)

    def run(self, count: int) -> None:
        with self.lock, torch.inference_mode():
            for place in range(self.done, count):
                target, source = self.started[place]
                target.copy_(source)
                self.started[place] = source.new_empty(0), source.new_empty(0)
                self.done = place + 1


class PretendedStreams:
    """Two streams of copies; computing happens at once.

    Args:
        loose: checks nothing but the pictures.
    """

    def __init__(self, *, loose: bool = False) -> None:
        self.loose = loose
        self.uploads, self.downloads = PretendedCopies(self), PretendedCopies(self)
        self.computed_last: Moment | None = None
        self.synchronized: list[Moment] = []

    def host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.full(tuple(shape), float("nan")).to(dtype)

    device = host

    def computed(self) -> Moment:
        self.computed_last = Moment(None)
        return self.computed_last

    def compute_waits(self, event: Moment) -> None:
        assert event.stream is not None
        event.stream.run(event.copies)


def loose_streams() -> PretendedStreams:
    return PretendedStreams(loose=True)


def bring(staged: StagedTransfer, picture: Tensor, planes: Planes) -> Output:
    """Have the picture on its way to the planes."""

    def write(channels: Sequence[Tensor]) -> None:
        for channel, part in zip(channels, picture, strict=True):
            channel.copy_(part)

    output = Output(planes)
    staged.write(write, output, ~picture.isfinite().all()[None])
    return output


def collected(output: Output) -> bool:
    assert output.arrival is not None
    return output.arrival.collect(output.planes)


class TestTransfer:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize("compute", [torch.float32, torch.float16])
    def test_frames_arrive_as_without_a_gpu(self, dtype: torch.dtype, compute: torch.dtype) -> None:
        staged, direct = StagedTransfer(loose_streams(), compute), HostTransfer(compute)
        frames = []
        for shift in range(5):
            backing, planes = memory(7, 16, dtype)
            backing += shift / 5
            frames.append((staged.read(planes), direct.read(planes)))
            backing.zero_()
        for result, expected in frames:
            assert torch.equal(result.pixels, expected.pixels)
            assert result.pixels.dtype == compute
            assert result.pixels.is_contiguous(memory_format=torch.channels_last)
            assert not result.non_finite

    def test_values_are_rounded_to_nearest_even(self) -> None:
        backing, planes = memory(3, 8, torch.float32)
        backing.view(-1)[:6] = torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, -0.25, 1e-9, -1.0, 2.0])
        planes = Planes(3, 6, torch.float32, planes.places)
        row = StagedTransfer(loose_streams(), torch.float16).read(planes).pixels[0, 0, 0]
        assert row.tolist() == [1.0, 1 + 2**-9, -0.25, 0.0, -1.0, 2.0]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize("compute", [torch.float32, torch.float16])
    @pytest.mark.parametrize(
        ("sample", "seen", "non_finite"),
        [
            ("nan", 0.0, True),
            ("inf", 2.0, True),
            ("-inf", -1.0, True),
            ("65504", 2.0, False),
            ("-2.5", -1.0, False),
            ("1.5", 1.5, False),
            ("-0.0", 0.0, False),
        ],
    )
    def test_one_sample_is_bounded_on_every_way_and_told_of_where_it_is_not_finite(
        self, dtype: torch.dtype, compute: torch.dtype, sample: str, seen: float, non_finite: bool
    ) -> None:
        backing, planes = memory(7, 16, dtype)
        expected = backing[..., :11].to(compute, copy=True)
        backing[1, 3, 4], expected[1, 3, 4] = float(sample), seen
        backing[..., 11:] = float("nan")  # beyond the rows: no sample of the picture
        for way in (HostTransfer(compute), StagedTransfer(loose_streams(), compute)):
            frame = way.read(planes)
            assert torch.equal(frame.pixels[0], expected)
            assert bool(frame.non_finite) == non_finite
        assert torch.equal(read(planes, CPU, compute).pixels[0], expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_pictures_arrive_whole_and_leave_the_padding_alone(self, dtype: torch.dtype) -> None:
        staged = StagedTransfer(loose_streams(), torch.float32)
        for shift in range(3):
            backing, planes = memory(7, 16, dtype)
            before = backing.clone()
            picture = torch.rand(3, 7, 11) + shift
            collected(bring(staged, picture, planes))
            assert torch.equal(backing[..., :11], picture.to(dtype))
            assert torch.equal(backing[..., 11:], before[..., 11:])

    @pytest.mark.parametrize("order", [range(9), range(8, -1, -1), (4, 0, 8, 2, 6, 1, 7, 3, 5)])
    def test_pictures_that_nobody_collects_in_time_arrive_whole_in_any_order(self, order: Sequence[int]) -> None:
        staged = StagedTransfer(loose_streams(), torch.float32)
        pictures = torch.rand(9, 3, 7, 11)
        pictures[5, 1, 2, 3] = float("inf")
        outputs = []
        for picture in pictures:
            backing, planes = memory(7, 16, torch.float32)
            outputs.append((backing, bring(staged, picture, planes)))
        for number in order:
            backing, output = outputs[number]
            assert collected(output) == (number == 5)
            assert torch.equal(backing[..., :11], pictures[number])
        # Pinned memory for so many, whatever waits.
        assert len(staged._free) == PLACES

    def test_a_picture_whose_crossing_fails_costs_no_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        staged = StagedTransfer(loose_streams(), torch.float32)
        pictures = torch.rand(8, 3, 7, 11)
        for number, picture in enumerate(pictures):
            backing, planes = memory(7, 16, torch.float32)
            output = bring(staged, picture, planes)
            with monkeypatch.context() as patch:
                if number % 2 == 0:
                    patch.setattr(Moment, "synchronize", Mock(side_effect=RuntimeError("CUDA error")))
                    with pytest.raises(RuntimeError, match="CUDA error"):
                        collected(output)
                    continue
            collected(output)
            assert torch.equal(backing[..., :11], picture)
        assert len(staged._free) == PLACES

    def test_planes_of_another_size_get_memory_of_their_own(self) -> None:
        staged = StagedTransfer(loose_streams(), torch.float32)
        for height, pitch in ((7, 16), (9, 16), (7, 24)):
            backing, planes = memory(height, pitch, torch.float32)
            assert torch.equal(staged.read(planes).pixels[0], backing[..., : pitch - 5])
            picture = torch.rand(3, height, pitch - 5)
            collected(bring(staged, picture, planes))
            assert torch.equal(backing[..., : pitch - 5], picture)

    def test_copies_begin_after_the_computing_that_they_depend_on(self) -> None:
        streams = PretendedStreams()
        staged = StagedTransfer(streams, torch.float32)
        _, planes = memory(7, 16, torch.float32)
        outputs = [bring(staged, torch.rand(3, 7, 11), planes) for _ in range(3)]
        assert streams.computed_last in streams.downloads.waited_for
        assert not streams.synchronized
        for output in outputs:
            collected(output)
        # The host waited for each plane and for what is said of the picture.
        assert [event.copies for event in streams.synchronized] == list(range(1, 13))
        streams.synchronized.clear()
        for _ in range(4):
            streams.computed_last = None
            staged.read(planes)
        # Each upload waited: the first two for the previous owner of the memory, the others for the frame before last.
        assert len({id(event) for event in streams.uploads.waited_for}) == 4
        # The host waited before it overwrote the first two frames.
        assert [event.copies for event in streams.synchronized] == [1, 2]
        assert all(event.stream is streams.uploads for event in streams.synchronized)


def capture_again(function: Callable[[], object]) -> Callable[[], None]:
    """A graph whose replay runs the function on the same memory, with nothing left in it from before."""
    return lambda: [function(), None][1]


@pytest.fixture
def network(tiny_fastreal: Path) -> RecurrentNetwork:
    return RecurrentNetwork(
        load_fastreal(tiny_fastreal).network, CPU, torch.float32, TileGrid(40, 24, (0, 0), 0, smallest=8, scale=4)
    )


class TestRecorder:
    def test_replays_give_the_results_of_the_functions_in_memory_of_the_largest_alone(
        self, tiny_fastreal: Path
    ) -> None:
        model = load_fastreal(tiny_fastreal).network
        recorded = []

        def capture(function: Callable[[], object]) -> Callable[[], None]:
            recorded.append(function)
            return capture_again(function)

        recorder = Recorder(capture)
        step = recorder(copied(model.propagate))
        first = recorder(copied(lambda frame: model.propagate(frame, None, None)))
        torch.manual_seed(0)
        with torch.inference_mode():
            for size in ((32, 40), (24, 40), (16, 32)):
                frames = torch.rand(5, 1, 3, *size)
                hidden, expected = [first(frames[0]).clone()], [model.propagate(frames[0], None, None)]
                for before, frame in itertools.pairwise(frames):
                    hidden.append(step(frame, before, hidden[-1]).clone())
                    expected.append(model.propagate(frame, before, expected[-1]))
                for state, wanted in zip(hidden, expected, strict=True):
                    assert torch.equal(state, wanted)
        assert len(recorded) == 6
        channels = hidden[0].shape[1]
        # Frame, frame before, hidden state and result of 32x40 pixels, for both functions and all sizes.
        assert sum(x.numel() for x in recorder._buffers.values()) == 32 * 40 * (3 + 3 + channels + channels)

    def test_what_cannot_be_recorded_runs_without_a_graph(self, caplog: pytest.LogCaptureFixture) -> None:
        def capture(function: Callable[[], object]) -> Callable[[], None]:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

        double = Recorder(capture)(copied(lambda x: x * 2))
        x = torch.rand(3)
        for _ in range(2):
            assert torch.equal(double(x), x * 2)
        assert caplog.messages == [
            "the network runs without a CUDA graph: operation not permitted when stream is capturing"
        ]

    def test_memory_that_runs_out_while_recording_is_told(self) -> None:
        def capture(function: Callable[[], object]) -> Callable[[], None]:
            raise RuntimeError("CUDA error: out of memory")

        with pytest.raises(RuntimeError, match="out of memory"):
            Recorder(capture)(copied(lambda x: x * 2))(torch.rand(3))

    @pytest.mark.parametrize("tile", [(0, 0), (32, 24)])
    def test_every_part_of_the_work_is_recorded_at_construction_and_gives_the_same_pixels(
        self, tiny_fastreal: Path, tile: tuple[int, int]
    ) -> None:
        model = load_fastreal(tiny_fastreal).network
        tiles = TileGrid(72, 56, tile, 8, smallest=16, scale=4)
        plain, replayed = (RecurrentNetwork(model, CPU, torch.float32, tiles) for _ in range(2))
        recorded = []

        def capture(function: Callable[[], object]) -> Callable[[], None]:
            recorded.append(function)
            return capture_again(function)

        replayed._record(Recorder(capture))
        with torch.inference_mode():
            replayed.dry_run(72, 56, torch.float32)
            sizes = {part.shape for part in tiles.cut(torch.empty(1, 3, 56, 72))}
            assert len(recorded) == 3 * len(sizes)
            states: list[Any] = [None, None]
            for shift in range(3):
                backing, planes = memory(56, 80, torch.float32)
                planes = Planes(56, 72, torch.float32, planes.places)
                backing += shift / 5
                pictures = []
                for i, way in enumerate((plain, replayed)):
                    states[i] = way.step(states[i], planes)
                    pictures.append(torch.zeros(3, 224, 288))
                    places = tuple((x.data_ptr(), 288 * 4) for x in pictures[-1])
                    way.render(states[i], Output(Planes(224, 288, torch.float32, places)))
                assert torch.equal(*pictures)
        assert len(recorded) == 3 * len(sizes)


class PretendedCuda:
    """The part of ``torch.cuda`` that records graphs; graphs and streams of any number of devices.

    Attributes:
        current: the stream to which work goes.
        captured: device, stream and pool of every recording.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = "default"
        self.captured: list[tuple[torch.device, str, object]] = []
        self.broken = False
        cuda = self

        class Graph:
            def capture_begin(self, pool: object, capture_error_mode: str) -> None:
                assert capture_error_mode == "thread_local"
                assert cuda.current != "default"
                cuda.captured.append((cuda.current.split()[0], cuda.current, pool))

            def capture_end(self) -> None:
                if cuda.broken:
                    raise RuntimeError("operation failed due to a previous error during capture")

            def replay(self) -> None: ...

        @contextlib.contextmanager
        def stream(name: str) -> Iterator[None]:
            before, cuda.current = cuda.current, name
            try:
                yield
            finally:
                cuda.current = before

        counter = itertools.count()
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"{device} stream {next(counter)}")
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: ("pool", next(counter)))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


class TestCudaCapture:
    def test_every_device_records_on_a_stream_and_in_a_pool_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cuda = PretendedCuda(monkeypatch)
        ran_on = []
        for index in range(2):
            capture = CudaCapture(torch.device("cuda", index))
            for _ in range(3):
                capture(lambda: ran_on.append(cuda.current))
        assert [device for device, _, _ in cuda.captured] == ["cuda:0"] * 3 + ["cuda:1"] * 3
        assert len({stream for _, stream, _ in cuda.captured}) == 2
        assert len({pool for _, _, pool in cuda.captured}) == 2
        # Once before, where the work goes anyway, and once recorded.
        assert ran_on == [place for _, stream, _ in cuda.captured for place in ("default", stream)]

    @pytest.mark.parametrize("broken", [False, True])
    def test_a_recording_that_fails_leaves_the_stream_as_it_was_and_tells_the_first_error(
        self, broken: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cuda = PretendedCuda(monkeypatch)
        cuda.broken = True
        calls = itertools.count()

        def function() -> None:
            if next(calls) and broken:
                raise torch.OutOfMemoryError("CUDA out of memory")

        with pytest.raises(RuntimeError, match="CUDA out of memory" if broken else "previous error"):
            CudaCapture(torch.device("cuda", 0))(function)
        assert cuda.current == "default"


class Reaching(TorchDispatchMode):
    """Records operations that a CUDA graph cannot hold: those that wait for the device or read host memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        scalars = [x for x in tensors if x.device.type == "cpu"]
        if scalars or func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::item"):
            self.names.append(func.name())
        return result


@pytest.mark.parametrize("config", [COMPACT, FastRealConfig()], ids=["compact", "full size"])
@pytest.mark.parametrize("capability", [(7, 5), (8, 0)], ids=["plain forms", "kernels"])
def test_a_step_on_a_gpu_never_waits_for_it_nor_for_the_host(
    config: FastRealConfig, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch, gpu_of: GPUOf
) -> None:
    gpu_of(capability)
    # cuDNN's sampler has no fake implementation.
    monkeypatch.setattr(F, "grid_sample", lambda x, *_, **__: torch.empty_like(x))
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda"):
            network = FastRealVSR(config)
            frames, hidden = torch.empty(2, 1, 3, 40, 52), torch.empty(1, config.channels, 40, 52)
        with Reaching() as reaching:
            assert network.propagate(frames[0], frames[1], hidden).is_cuda
    assert not reaching.names


def test_an_error_keeps_nothing_that_was_in_use_when_it_was_raised() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def allocate() -> None:
        large = torch.empty(4)
        alive.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory")

    gc.disable()
    try:
        with contextlib.suppress(torch.OutOfMemoryError):
            worker_of(CPU).run(allocate)
        worker_of(CPU).run(lambda: None)
        assert alive[0]() is None
    finally:
        gc.enable()


CLIP = Clip(format="RGBS", width=400, height=300, frames=10)


class TestMemory:
    def test_tiles_are_halved_until_they_fit(self, caplog: pytest.LogCaptureFixture) -> None:
        tried = []

        def open_model(tile: Sequence[int]) -> str:
            tried.append(tuple(tile))
            if (tile[0] or 400) * (tile[1] or 300) > 20_000:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return "model"

        assert fit_tiles((0, 0), 400, 300, open_model, smallest=32) == ("model", (100, 150))
        assert tried == [(0, 0), (200, 0), (200, 150), (100, 150)]
        assert "using (100, 150)" in caplog.text

    def test_tiles_that_fit_stay(self, caplog: pytest.LogCaptureFixture) -> None:
        assert fit_tiles((64, 0), 400, 300, lambda tile: tile, smallest=32) == ((64, 0), (64, 0))
        assert not caplog.messages

    def test_what_never_fits_is_one_clear_error(self) -> None:
        def open_model(tile: Sequence[int]) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        with pytest.raises(UserError, match=r"too small even for tile=\[50, 38\]; close .*, or give device_index=-1"):
            fit_tiles((0, 0), 400, 300, open_model, smallest=32)

    def test_a_dry_run_leaves_no_trace(self, network: RecurrentNetwork) -> None:
        _, planes = memory(24, 45, torch.float32)
        before = network.step(None, planes)
        network.dry_run(40, 24, torch.float32)
        assert torch.equal(network.step(None, planes).hidden[0], before.hidden[0])

    def test_a_filter_on_a_gpu_makes_its_dry_run_on_the_device_thread(
        self, tiny_fastreal: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dry_runs = []
        monkeypatch.setattr(
            RecurrentNetwork,
            "dry_run",
            lambda self, *arguments: dry_runs.append((threading.current_thread().name, *arguments)),
        )
        meta = torch.device("meta")
        monkeypatch.setattr("vsvsr.engine.device.choose_device", lambda index: meta)
        monkeypatch.setattr("vsvsr.engine.recurrent.transfer", lambda device, dtype: HostTransfer(dtype))
        opened = create_fastreal(FastRealSettings(model_path=str(tiny_fastreal)), CLIP)
        assert opened.device == meta
        assert dry_runs == [("vsvsr meta", 400, 300, torch.float32)]

    @pytest.mark.parametrize(("video_format", "dtype"), [("RGBS", torch.float32), ("RGBH", torch.float16)])
    @pytest.mark.parametrize("name", sorted(FILTERS))
    def test_every_dry_run_has_the_two_pictures_of_a_transfer_in_the_type_of_the_planes(
        self, name: str, video_format: str, dtype: torch.dtype, weights_of: WeightsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = set()

        class Allocations(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = func(*args, **(kwargs or {}))
                if func.name() == "aten::new_empty":
                    seen.add((*result.shape, result.dtype))
                return result

        def rehearsed(device: torch.device, dry_run: Callable[[], object], **limited: bool) -> None:
            with Allocations():
                dry_run()

        for module in ("vsvsr.engine.memory", "vsvsr.filters.session"):
            monkeypatch.setattr(f"{module}.rehearse", rehearsed)
        definition = FILTERS[name]
        clip = Clip(format=video_format, width=32, height=16, frames=3)
        settings = definition.settings(model_path=str(weights_of(name)), device_index=-1, fp16=True)
        with torch.inference_mode():
            definition.create(settings, clip)
        assert (2, 3, 64, 128, dtype) in seen

    @pytest.mark.parametrize("threshold", [0.0, 0.5])
    def test_a_dry_run_of_skip_estimates_flow_whatever_it_skips(self, threshold: float) -> None:
        network = SkipVSR(8, 1, threshold=threshold).eval().requires_grad_(False)
        ran = []
        network.spynet.register_forward_hook(lambda module, given, result: ran.append(result.shape))
        grid = TileGrid(70, 66, (0, 0), 16, smallest=16, scale=4)
        with torch.inference_mode():
            ChunkedNetwork(network.chunk, CPU, torch.float32, grid, 1).dry_run(70, 66, torch.float32)
        assert ran == [(1, 2, 66, 70)] * 4

    @pytest.mark.parametrize(("fp16", "dtype"), [(False, torch.float32), (True, torch.float16)])
    @pytest.mark.parametrize("name", sorted(FILTERS))
    def test_every_filter_computes_single_precision_clips_in_half_where_it_is_asked_for(
        self, name: str, fp16: bool, dtype: torch.dtype, weights_of: WeightsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = []

        def way(device: torch.device, dtype: torch.dtype) -> HostTransfer:
            given.append(dtype)
            return HostTransfer(dtype)

        for network in (ChunkedNetwork, RecurrentNetwork, Upscaler):
            monkeypatch.setattr(network, "dry_run", lambda self, *arguments: None)
        monkeypatch.setattr("vsvsr.engine.device.choose_device", lambda index: torch.device("meta"))
        for module in ("recurrent", "chunked", "continued"):
            monkeypatch.setattr(f"vsvsr.engine.{module}.transfer", way)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (9_000_000_000, 9_000_000_000))
        definition = FILTERS[name]
        definition.create(definition.settings(model_path=str(weights_of(name)), fp16=fp16), CLIP)
        assert given == [dtype]

    @pytest.mark.parametrize(("given", "budget"), [({}, 3_000_000_000), ({"feature_cache": 5}, 5_000_000)])
    def test_every_chunked_filter_takes_its_feature_cache_from_what_is_free_after_the_dry_run(
        self,
        given: dict[str, int],
        budget: int,
        tiny_mia: Path,
        skip_weights: Path,
        tiny_ultra: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Whatever ``state_cache`` is."""
        dry_runs = []
        models: list[Any] = []

        def free(device: torch.device) -> tuple[int, int]:
            assert device == torch.device("meta")
            return 9_000_000_000 if dry_runs else 24_000_000_000, 24_000_000_000

        def session(model: object, **arguments: object) -> None:
            models.append(model)

        for network in (ChunkedNetwork, Upscaler):
            monkeypatch.setattr(network, "dry_run", lambda self, *arguments: dry_runs.append(self))
        monkeypatch.setattr("vsvsr.engine.device.choose_device", lambda index: torch.device("meta"))
        monkeypatch.setattr("vsvsr.engine.chunked.transfer", lambda device, dtype: HostTransfer(dtype))
        monkeypatch.setattr("vsvsr.engine.continued.transfer", lambda device, dtype: HostTransfer(dtype))
        monkeypatch.setattr("vsvsr.filters.session.ChunkedSession", session)
        monkeypatch.setattr("vsvsr.streaming.ChunkedSession", session)
        monkeypatch.setattr(torch.cuda, "mem_get_info", free)
        for name, path in (("Skip", skip_weights), ("MIA", tiny_mia), ("Ultra", tiny_ultra)):
            definition = FILTERS[name]
            definition.create(definition.settings(model_path=str(path), state_cache=1, **given), CLIP)
        skip, mia, ultra = models
        assert dry_runs[:2] == [skip, mia]
        assert [type(run) for run in dry_runs[2:]] == [Upscaler]
        assert [skip.budget, mia.budget, ultra.model.budget] == [budget] * 3


class Hungry:
    """A session that runs out of memory a number of times, and records the thread on which it is freed."""

    def __init__(self, failures: int, events: list[str], error: RuntimeError | None = None) -> None:
        self.failures = failures
        self.error = error
        self.events = events

    def advance(self, n: int, wanted: list[int], sources: dict[int, Source[Planes]]) -> list[int]:
        return []

    def render(self, n: int, output: Output) -> bool:
        if self.failures:
            self.failures -= 1
            self.scratch = torch.empty(1)
            assert self.error is not None
            raise self.error
        return False

    def forget(self) -> None: ...

    def shrink(self) -> None:
        self.events.append("shrunk")

    def counters(self) -> dict[str, int]:
        return {}

    def __del__(self) -> None:
        self.events.append(f"session freed on {threading.current_thread().name}")


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 TiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError("std::bad_alloc"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_what_libraries_say_when_memory_runs_out_is_understood(error: RuntimeError) -> None:
    assert is_out_of_memory(error)


def test_other_errors_are_not_taken_for_memory() -> None:
    for error in (RuntimeError("CUDA error: an illegal memory access was encountered"), ValueError("out of memory")):
        assert not is_out_of_memory(error)


class TestFilterInstance:
    @pytest.fixture
    def released(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The devices whose memory was given back, with the threads that did it."""
        released: list[str] = []
        monkeypatch.setattr(
            "vsvsr.bridge.release", lambda device: released.append(f"{device} on {threading.current_thread().name}")
        )
        return released

    @pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
    def test_a_frame_that_runs_out_of_memory_is_tried_again_with_less_kept(
        self, error: RuntimeError, released: list[str]
    ) -> None:
        instance = FilterInstance(FilterSession(Hungry(1, released, error), CPU, 4), CLIP)
        assert instance.render(0, ()) == []
        assert released == ["shrunk", "cpu on vsvsr cpu"]

    @pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
    def test_memory_that_stays_too_small_is_one_clear_error_and_the_filter_lives(
        self, error: RuntimeError, released: list[str]
    ) -> None:
        instance = FilterInstance(FilterSession(Hungry(2, [], error), CPU, 4), CLIP)
        with pytest.raises(UserError, match=r"^memory is used up; give smaller tiles or caches"):
            instance.render(0, ())
        assert instance.render(0, ()) == []

    def test_another_error_is_not_tried_again(self, released: list[str]) -> None:
        instance = FilterInstance(FilterSession(Hungry(1, released, RuntimeError("illegal access")), CPU, 4), CLIP)
        with pytest.raises(RuntimeError, match="illegal access"):
            instance.render(0, ())
        assert not released

    def test_a_filter_is_freed_on_the_device_thread_and_its_memory_returned_there(self, released: list[str]) -> None:
        # Its own device thread: filters of other tests may be freed meanwhile, on theirs.
        device = torch.device("cpu", 0)
        instance = FilterInstance(FilterSession(Hungry(0, released), device, 4), CLIP)
        del instance
        worker_of(device).run(lambda: None)
        assert [event for event in released if event.endswith("cpu:0")] == [
            "session freed on vsvsr cpu:0",
            "cpu:0 on vsvsr cpu:0",
        ]


class TestRelease:
    @pytest.fixture
    def emptied(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        emptied: list[str] = []
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("emptied"))
        return emptied

    def test_a_filter_on_the_cpu_leaves_gpus_alone(self, emptied: list[str]) -> None:
        release(CPU)
        assert not emptied
        release(torch.device("cuda", 1))
        assert emptied == ["emptied"]

    def test_it_waits_while_a_graph_is_recorded(self, emptied: list[str]) -> None:
        with device_memory.capturing():
            thread = threading.Thread(target=release, args=(torch.device("cuda", 0),))
            thread.start()
            thread.join(timeout=0.2)
            assert thread.is_alive()
            assert not emptied
        thread.join()
        assert emptied == ["emptied"]

    def test_another_plugins_recording_does_no_harm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> None:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

        monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
        release(torch.device("cuda", 0))


class TestRehearsal:
    """On a device thread that does not touch a GPU; what the allocator counts is given."""

    @pytest.fixture
    def failures(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        failures = [3]
        monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {"num_ooms": failures[0]})
        monkeypatch.setattr(device_memory, "worker_of", lambda device: worker_of(torch.device("meta")))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        return failures

    def test_an_algorithm_that_only_runs_because_memory_is_short_counts_as_too_little(
        self, failures: list[int]
    ) -> None:
        """cuDNN's next best rounds differently, and torch goes on taking it when there is memory again."""

        def dry_run() -> None:
            failures[0] += 1  # cuDNN asks for a workspace, does not get it, and says nothing

        with pytest.raises(torch.OutOfMemoryError):
            rehearse(torch.device("cuda", 0), dry_run)
        rehearse(torch.device("cuda", 0), lambda: None)

    @pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
    def test_every_kind_of_memory_error_makes_the_tiles_smaller(self, failures: list[int], error: RuntimeError) -> None:
        def dry_run() -> None:
            raise error

        def open_model(tile: Sequence[int]) -> str:
            if not tile[0]:
                rehearse(torch.device("cuda", 0), dry_run)
            return "model"

        assert fit_tiles((0, 0), 400, 300, open_model, smallest=32) == ("model", (200, 0))

    def test_other_errors_are_told(self, failures: list[int]) -> None:
        def dry_run() -> None:
            raise RuntimeError("illegal access")

        with pytest.raises(RuntimeError, match="illegal access"):
            rehearse(torch.device("cuda", 0), dry_run)


class TestChooseDevice:
    @pytest.fixture
    def old_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A GPU that NVML counts, under a driver too old for this torch."""
        message = "The NVIDIA driver on your system is too old (found version 11040).\nPlease update"

        def ones(*size: int, device: torch.device) -> Tensor:
            assert device == torch.device("cuda", 0)
            raise RuntimeError(message)

        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch, "ones", ones)
        monkeypatch.setattr("vsvsr.engine.device.cuda_driver", lambda: "11.4")

    WHY = (
        r"GPU 0 cannot be used: The NVIDIA driver on your system is too old \(found version 11040\)\. "
        r"\(its driver supports CUDA 11\.4, torch [^ ]+ is built for CUDA [^ ]+\)"
    )

    def test_a_gpu_that_cannot_be_used_is_an_error_where_it_was_asked_for(self, old_driver: None) -> None:
        with pytest.raises(UserError, match=f"^device_index=0: {self.WHY}; give device_index=-1 for the CPU$"):
            choose_device(0)

    def test_the_cpu_is_used_where_nobody_asked_for_a_gpu(
        self, old_driver: None, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert choose_device(None) == CPU
        assert re.fullmatch(f"the CPU is used: {self.WHY}", caplog.messages[0])
        assert choose_device(-1) == CPU
        assert len(caplog.messages) == 1

    def test_a_gpu_that_cannot_be_used_is_listed_with_the_reason(self, old_driver: None) -> None:
        (gpu,) = gpus()
        assert gpu.index == 0
        assert re.fullmatch(self.WHY, gpu.problem or "")

    def test_a_gpu_that_computes_is_chosen_even_when_it_is_full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def ones(*size: int, device: torch.device) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        for given in (torch.ones, ones):
            host = torch.zeros(1)
            monkeypatch.setattr(
                torch, "ones", given if given is ones else lambda *size, device, host=host: host.clone()
            )
            assert choose_device(None) == torch.device("cuda", 0)
            assert choose_device(1) == torch.device("cuda", 1)


class TestGPUsOfAnotherMake:
    """Pretended: torch says that it has two of Intel's."""

    @pytest.fixture(autouse=True)
    def intel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
        host = torch.ones(1)
        monkeypatch.setattr(torch, "ones", lambda *size, device: host.clone())

    def test_they_are_taken_only_where_they_are_asked_for(self) -> None:
        assert choose_device(None) == CPU
        assert choose_device(-1) == CPU
        assert choose_device(1) == torch.device("xpu", 1)
        with pytest.raises(UserError, match=r"^device_index=2 is not possible; allowed: -1 \(CPU\) to 1$"):
            choose_device(2)

    def test_cuda_comes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        assert choose_device(0) == choose_device(None) == torch.device("cuda", 0)

    def test_one_that_cannot_be_used_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def ones(*size: int, device: torch.device) -> Tensor:
            raise RuntimeError("no driver\nC++ frames follow")

        monkeypatch.setattr(torch, "ones", ones)
        message = "^device_index=0: xpu:0 cannot be used: no driver; give device_index=-1 for the CPU$"
        with pytest.raises(UserError, match=message):
            choose_device(0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_frames_come_and_go_without_streams(self, dtype: torch.dtype) -> None:
        way = transfer(torch.device("xpu", 0), dtype)
        assert isinstance(way, PlainTransfer)
        way = PlainTransfer(CPU, dtype)
        _, planes = memory(7, 16, dtype)
        frame, wanted = way.read(planes), HostTransfer(dtype).read(planes)
        assert torch.equal(frame.pixels, wanted.pixels)
        backing, planes = memory(7, 16, dtype)
        picture = torch.rand(3, 7, 16).to(dtype)

        def write(channels: Sequence[Tensor]) -> None:
            for target, channel in zip(channels, picture, strict=True):
                target.copy_(channel[: target.shape[0], : target.shape[1]])

        output = Output(planes)
        way.write(write, output, torch.tensor([True]))
        assert output.non_finite
        assert torch.equal(backing[:, :, : planes.width], picture[:, :, : planes.width])

    def test_features_of_a_chunk_stay_on_them(self) -> None:
        assert feature_budget(None, torch.device("xpu", 0)) is None
        assert feature_budget(5, torch.device("mps", 0)) == 5_000_000


def test_tiles_are_blended_without_uploading_weights_for_every_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    class Uploads(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func.name() == "aten::_to_copy" and args[0].device.type == "cpu" and result.is_cuda:
                self.size += result.nbytes
            return result

    tiles = TileGrid(1920, 1080, (512, 512), 16, smallest=16, scale=4)
    parts = [lambda planes: None for _ in tiles.cut(torch.empty(1, 3, 1080, 1920, device="meta"))]
    sizes = []
    with FakeTensorMode(allow_non_fake_inputs=True), Uploads() as uploads:
        planes = torch.empty(3, 4320, 7680, device="cuda").unbind()
        for _ in range(2):
            tiles.write(parts, planes)
            sizes.append(uploads.size)
    assert sizes[1] == sizes[0]
    assert sizes[0] < 500_000
