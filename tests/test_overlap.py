"""Pictures on their way from a device while the next are made: on a simulated device whose copies are late, and on one
with a clock.
"""

from dataclasses import dataclass, field
from itertools import permutations

import pytest
import torch
import vapoursynth as vs
from torch import Tensor

from tests.cases import Make, WeightsOf, maker
from tests.filters import Case
from tests.pixels import play, same
from tests.test_conformance import (  # noqa: F401  the same tests, on the device below
    clip,
    jitter,
    test_linear_playback_at_8_threads_runs_the_network_no_more_than_documented,
    test_linear_playback_is_the_same_on_any_number_of_threads,
    test_properties_of_the_source_frame_are_carried_over,
    test_random_requests_with_8_in_flight_give_the_pixels_of_linear_playback,
    test_requests_that_nobody_waits_for_leave_the_filter_usable,
    test_reversed_playback_gives_the_pixels_of_linear_playback,
    test_samples_that_are_not_finite_count_as_0_or_the_bounds_and_touch_nothing_beyond_a_cut,
    test_seeks_across_restarts_cuts_and_the_end_give_the_pixels_of_linear_playback,
    test_two_filters_on_one_clip_do_not_disturb_each_other,
    test_two_outputs_read_in_turns_give_the_pixels_of_linear_playback,
)
from tests.test_device_path import Moment, bring, collected, loose_streams
from tests.test_planes import memory
from vsvsr.engine.planes import Output
from vsvsr.engine.transfer import StagedTransfer

MODULES = ("recurrent", "chunked", "continued")


@pytest.fixture(params=["FastReal"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(name: str, weights_of: WeightsOf) -> Make:
    """Makes filters whose frames and pictures cross to a device and back, as late as they may."""
    plain = maker(name, weights_of(name))

    def staged(source: vs.VideoNode, **more: object) -> vs.VideoNode:
        with pytest.MonkeyPatch.context() as patch:
            for module in MODULES:
                patch.setattr(
                    f"vsvsr.engine.{module}.transfer", lambda device, dtype: StagedTransfer(loose_streams(), dtype)
                )
            return plain(source, **more)

    return staged


_references: dict[str, dict[int, str]] = {}


@pytest.fixture
def reference(name: str, clip: vs.VideoNode, core: vs.Core, weights_of: WeightsOf) -> dict[int, str]:  # noqa: F811
    """Linear playback without a device."""
    if name not in _references:
        core.num_threads = 1
        _references[name] = play(maker(name, weights_of(name))(clip))
    return _references[name]


@pytest.mark.parametrize("name", ["MIA", "Skip", "Ultra"], indirect=True)
def test_other_filters_give_the_pixels_that_they_give_without_a_device(
    make: Make,
    case: Case,
    clip: vs.VideoNode,  # noqa: F811
    reference: dict[int, str],
    core: vs.Core,
) -> None:
    core.num_threads = 8
    assert same(play(make(jitter(clip)), in_flight=8), reference)


def test_a_crossing_that_fails_fails_its_frame_alone(
    make: Make,
    clip: vs.VideoNode,  # noqa: F811
    reference: dict[int, str],
    core: vs.Core,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core.num_threads = 4
    output = make(clip)
    synchronize, calls = Moment.synchronize, iter(range(10**6))

    def fail_once(moment: Moment) -> None:
        if moment.stream is not None and moment.stream is moment.stream.streams.downloads and next(calls) == 9:
            raise RuntimeError("CUDA error: unspecified launch failure")
        synchronize(moment)

    monkeypatch.setattr(Moment, "synchronize", fail_once)
    failed = []
    for n in range(clip.num_frames):
        try:
            output.get_frame(n).close()
        except vs.Error as error:
            failed.append(str(error))
    assert failed == ["FastReal: RuntimeError: CUDA error: unspecified launch failure"]
    output.clear_cache()
    assert same(play(output, in_flight=4), reference)


@dataclass
class At:
    """An event of a stream with a clock."""

    clock: "ClockedStreams"
    time: float

    def synchronize(self) -> None:
        self.clock.now = max(self.clock.now, self.time)


@dataclass
class ClockedCopies:
    """A stream on which a tensor takes ``cost``, and what is smaller than a plane nothing."""

    clock: "ClockedStreams"
    cost: float
    free: float = 0.0

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)
        self.free = max(self.free, self.clock.now) + (self.cost if source.numel() > 1 else 0.0)

    def queued(self) -> At:
        return At(self.clock, self.free)

    def wait(self, event: At) -> None:
        self.free = max(self.free, event.time)


@dataclass
class ClockedStreams:
    """A device where an upload, the computing of a frame and a download take their times.

    Attributes:
        now: the time on the thread of the host that is at work.
    """

    upload: float
    compute: float
    download: float
    now: float = 0.0
    free: float = 0.0
    uploads: ClockedCopies = field(init=False)
    downloads: ClockedCopies = field(init=False)

    def __post_init__(self) -> None:
        self.uploads, self.downloads = ClockedCopies(self, self.upload), ClockedCopies(self, self.download / 3)

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    def device(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    def computed(self) -> At:
        return At(self, self.free)

    def compute_waits(self, event: At) -> None:
        self.free = max(self.free, event.time)


def play_for(frames: int, upload: float, compute: float, download: float, copy: float, *, apart: bool) -> float:
    """When the last picture is where the host wants it, if another thread collects them, or the device's own does."""
    clock = ClockedStreams(upload, compute, download)
    staged = StagedTransfer(clock, torch.float32)
    pictures = torch.rand(frames, 3, 7, 11)
    device_thread = other_thread = 0.0
    waiting: list[tuple[float, Output, Tensor]] = []
    ends: list[float] = []
    for number in range(frames):
        # A place is that of the third picture before.
        clock.now = max(device_thread, ends[number - 3] if apart and number >= 3 else 0.0)
        backing, planes = memory(7, 16, torch.float32)
        staged.read(planes)
        clock.free = max(clock.free, clock.now) + compute
        output = bring(staged, pictures[number], planes)
        device_thread = clock.now
        waiting.append((device_thread, output, backing))
        while len(waiting) > (2 if apart and number + 1 < frames else 0):
            begun, output, backing = waiting.pop(0)
            clock.now = max(other_thread, begun) if apart else device_thread
            collected(output)
            assert torch.equal(backing[..., :11], pictures[len(ends)])
            ends.append(clock.now + copy)
            other_thread = ends[-1]
            if not apart:
                device_thread = ends[-1]
    return ends[-1]


@pytest.mark.parametrize("times", sorted(set(permutations((1.0, 2.0, 3.0, 5.0)))))
def test_playback_takes_the_time_of_its_slowest_part_and_not_of_all_together(
    times: tuple[float, float, float, float],
) -> None:
    """Upload, computing, download and the copy into the host's frame."""
    frames = 60
    assert play_for(frames, *times, apart=True) <= frames * max(times) + 2 * sum(times)
    # Collected on the device's own thread, as if nothing overlapped.
    assert play_for(frames, *times, apart=False) >= frames * (sum(times) - times[0])
