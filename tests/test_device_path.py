"""Transfer to a GPU and back on simulated devices: order of copies and computing, behaviour when memory runs out.

Tests on a real GPU are in test_gpu.py.
"""

import contextlib
import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.test_planes import memory
from vsvsr.bridge import FilterInstance
from vsvsr.engine.chunked import ChunkedNetwork
from vsvsr.engine.graph import StepGraph
from vsvsr.engine.memory import fit_tiles
from vsvsr.engine.planes import Output, Planes, read
from vsvsr.engine.recurrent import RecurrentNetwork
from vsvsr.engine.tiling import TileGrid
from vsvsr.engine.transfer import HostTransfer, StagedTransfer
from vsvsr.engine.worker import worker_of
from vsvsr.errors import UserError
from vsvsr.filters.clip import Clip
from vsvsr.filters.fastreal import FastRealSettings
from vsvsr.filters.fastreal import create as create_fastreal
from vsvsr.filters.registry import FILTERS
from vsvsr.filters.session import FilterSession
from vsvsr.models.fastreal import COMPACT, FastRealConfig, FastRealVSR
from vsvsr.models.fastreal import load as load_fastreal
from vsvsr.streaming import Source

CPU = torch.device("cpu")


@dataclass
class Moment:
    """An event in a simulated stream."""

    streams: "PretendedStreams"
    stream: str
    copies: int

    def synchronize(self) -> None:
        self.streams.synchronized.append(self)
        self.streams.run_copies(self.copies)


@dataclass
class PretendedStreams:
    """Copies happen as late as allowed, when something waits for them; computing happens at once.

    A copy that depends on computing must have waited for it.
    """

    queued: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    done: int = 0
    computed_last: Moment | None = None
    waited_for: list[Moment] = field(default_factory=list)
    synchronized: list[Moment] = field(default_factory=list)

    def host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.full(tuple(shape), float("nan"), dtype=dtype)

    device = host

    def copy(self, target: Tensor, source: Tensor) -> None:
        assert self.computed_last is None or self.computed_last in self.waited_for
        self.queued.append((target, source))

    def copied(self) -> Moment:
        return Moment(self, "copies", len(self.queued))

    def computed(self) -> Moment:
        self.computed_last = Moment(self, "compute", 0)
        return self.computed_last

    def copies_wait(self, event: Moment) -> None:
        self.waited_for.append(event)

    def compute_waits(self, event: Moment) -> None:
        assert event.stream == "copies"
        self.run_copies(event.copies)

    def run_copies(self, count: int) -> None:
        for target, source in self.queued[self.done : count]:
            target.copy_(source)
        self.done = max(self.done, count)


class TestTransfer:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize("compute", [torch.float32, torch.float16])
    def test_frames_arrive_as_without_a_gpu(self, dtype: torch.dtype, compute: torch.dtype) -> None:
        staged, direct = StagedTransfer(LooseStreams(), compute), HostTransfer(compute)
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
        row = StagedTransfer(LooseStreams(), torch.float16).read(planes).pixels[0, 0, 0]
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
        for way in (HostTransfer(compute), StagedTransfer(LooseStreams(), compute)):
            frame = way.read(planes)
            assert torch.equal(frame.pixels[0], expected)
            assert bool(frame.non_finite) == non_finite
        assert torch.equal(read(planes, CPU, compute).pixels[0], expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_pictures_arrive_whole_and_leave_the_padding_alone(self, dtype: torch.dtype) -> None:
        staged = StagedTransfer(LooseStreams(), torch.float32)
        for shift in range(3):
            backing, planes = memory(7, 16, dtype)
            before = backing.clone()
            picture = torch.rand(3, 7, 11) + shift

            def write(channels: Sequence[Tensor], picture: Tensor = picture) -> None:
                for channel, part in zip(channels, picture, strict=True):
                    channel.copy_(part)

            staged.write(write, planes)
            assert torch.equal(backing[..., :11], picture.to(dtype))
            assert torch.equal(backing[..., 11:], before[..., 11:])

    def test_planes_of_another_size_get_memory_of_their_own(self) -> None:
        staged = StagedTransfer(LooseStreams(), torch.float32)
        for height, pitch in ((7, 16), (9, 16), (7, 24)):
            backing, planes = memory(height, pitch, torch.float32)
            assert torch.equal(staged.read(planes).pixels[0], backing[..., : pitch - 5])

    def test_copies_begin_after_the_computing_that_they_depend_on(self) -> None:
        streams = PretendedStreams()
        staged = StagedTransfer(streams, torch.float32)
        _, planes = memory(7, 16, torch.float32)

        def write(channels: Sequence[Tensor]) -> None:
            streams.computed_last = None
            for channel in channels:
                channel.fill_(1.0)

        staged.write(write, planes)
        assert streams.computed_last in streams.waited_for
        for _ in range(4):
            streams.computed_last = None
            staged.read(planes)
        # Each upload waited: the first two for the previous owner of the memory, the others for the frame before last.
        assert len(streams.waited_for) == 1 + 4
        assert len({id(event) for event in streams.waited_for}) == 5
        # The host waited for the three planes of the picture, and before it overwrote the first two frames.
        assert [event.copies for event in streams.synchronized] == [1, 2, 3, 4, 5]


class LooseStreams(PretendedStreams):
    """Checks nothing but the pictures."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        self.queued.append((target, source))


def capture_again(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """A graph whose replay runs the function on the same memory."""
    result = function().clone()
    return lambda: result.copy_(function()), result


@pytest.fixture
def network(tiny_fastreal: Path) -> RecurrentNetwork:
    return RecurrentNetwork(
        load_fastreal(tiny_fastreal).network, CPU, torch.float32, TileGrid(40, 24, (0, 0), 0, smallest=8, scale=4)
    )


class TestStepGraph:
    def test_replays_give_the_states_of_the_step(self, tiny_fastreal: Path) -> None:
        model = load_fastreal(tiny_fastreal).network
        captured = []

        def capture(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
            captured.append(function)
            return capture_again(function)

        graph = StepGraph(model.propagate, capture)
        torch.manual_seed(0)
        with torch.inference_mode():
            for size in ((24, 40), (32, 24)):
                frames = torch.rand(5, 1, 3, *size)
                hidden = [model.propagate(frames[0], None, None)]
                expected = list(hidden)
                for before, frame in itertools.pairwise(frames):
                    hidden.append(graph(frame, before, hidden[-1]))
                    expected.append(model.propagate(frame, before, expected[-1]))
                # Compared at the end: no replay may have changed a state that was returned before.
                for state, wanted in zip(hidden, expected, strict=True):
                    assert torch.equal(state, wanted)
        assert len(captured) == 2

    def test_a_step_that_cannot_be_captured_runs_without_a_graph(
        self, tiny_fastreal: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        model = load_fastreal(tiny_fastreal).network

        def capture(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

        graph = StepGraph(model.propagate, capture)
        frame, previous = torch.rand(2, 1, 3, 24, 40)
        hidden = model.propagate(previous, None, None)
        for _ in range(2):
            assert torch.equal(graph(frame, previous, hidden), model.propagate(frame, previous, hidden))
        assert caplog.messages == [
            "the step runs without a CUDA graph: operation not permitted when stream is capturing"
        ]


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
    config: FastRealConfig, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
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

        assert fit_tiles((0, 0), 400, 300, open_model, smallest=32) == "model"
        assert tried == [(0, 0), (200, 0), (200, 150), (100, 150)]
        assert "using (100, 150)" in caplog.text

    def test_tiles_that_fit_stay(self, caplog: pytest.LogCaptureFixture) -> None:
        assert fit_tiles((64, 0), 400, 300, lambda tile: tile, smallest=32) == (64, 0)
        assert not caplog.messages

    def test_what_never_fits_is_one_clear_error(self) -> None:
        def open_model(tile: Sequence[int]) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        with pytest.raises(UserError, match=r"too small even for tile=\[50, 38\]; close .*, or give device_index=-1"):
            fit_tiles((0, 0), 400, 300, open_model, smallest=32)

    def test_a_dry_run_leaves_no_trace(self, network: RecurrentNetwork) -> None:
        _, planes = memory(24, 45, torch.float32)
        before = network.step(None, planes)
        network.dry_run(40, 24)
        assert torch.equal(network.step(None, planes).hidden[0], before.hidden[0])

    def test_a_filter_on_a_gpu_makes_its_dry_run_on_the_device_thread(
        self, tiny_fastreal: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dry_runs = []
        monkeypatch.setattr(
            RecurrentNetwork,
            "dry_run",
            lambda self, width, height: dry_runs.append((threading.current_thread().name, width, height)),
        )
        meta = torch.device("meta")
        monkeypatch.setattr("vsvsr.engine.device.choose_device", lambda index: meta)
        monkeypatch.setattr("vsvsr.engine.recurrent.transfer", lambda device, dtype: HostTransfer(dtype))
        opened = create_fastreal(FastRealSettings(model_path=str(tiny_fastreal)), CLIP)
        assert opened.device == meta
        assert dry_runs == [("vsvsr meta", 400, 300)]

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

        monkeypatch.setattr(ChunkedNetwork, "dry_run", lambda self, width, height: dry_runs.append(self))
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
        assert dry_runs == [skip, mia]
        assert [skip.budget, mia.budget, ultra.model.budget] == [budget] * 3


class Hungry:
    """A session that runs out of memory a number of times, and records the thread on which it is freed."""

    def __init__(self, failures: int, events: list[str]) -> None:
        self.failures = failures
        self.events = events

    def advance(self, n: int, wanted: list[int], sources: dict[int, Source[Planes]]) -> list[int]:
        return []

    def render(self, n: int, output: Output) -> bool:
        if self.failures:
            self.failures -= 1
            self.scratch = torch.empty(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 TiB")
        return False

    def failed(self, frames: Sequence[int]) -> None: ...

    def shrink(self) -> None:
        self.events.append("shrunk")

    def counters(self) -> dict[str, int]:
        return {}

    def __del__(self) -> None:
        self.events.append(f"session freed on {threading.current_thread().name}")


class TestFilterInstance:
    @pytest.fixture
    def emptied(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The threads that called ``empty_cache``."""
        emptied: list[str] = []
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(threading.current_thread().name))
        return emptied

    def test_a_frame_that_runs_out_of_memory_is_tried_again_with_less_kept(self, emptied: list[str]) -> None:
        instance = FilterInstance(FilterSession(Hungry(1, emptied), CPU, 4), CLIP)
        assert instance.render(0, ()) == []
        assert emptied == ["shrunk", "vsvsr cpu"]

    def test_memory_that_stays_too_small_is_one_clear_error_and_the_filter_lives(self, emptied: list[str]) -> None:
        instance = FilterInstance(FilterSession(Hungry(2, []), CPU, 4), CLIP)
        with pytest.raises(UserError, match="the device's memory is used up; give smaller tiles or caches"):
            instance.render(0, ())
        assert instance.render(0, ()) == []

    def test_a_filter_is_freed_on_the_device_thread_and_its_memory_returned_there(self, emptied: list[str]) -> None:
        # Its own device thread: filters of other tests may be freed meanwhile, on theirs.
        events, device = emptied, torch.device("cpu", 0)
        instance = FilterInstance(FilterSession(Hungry(0, events), device, 4), CLIP)
        del instance
        worker_of(device).run(lambda: None)
        assert [event for event in events if event.endswith("cpu:0")] == [
            "session freed on vsvsr cpu:0",
            "vsvsr cpu:0",
        ]
