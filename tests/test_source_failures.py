"""What becomes of a filter's frames when its source fails, for every registered filter."""

import math
import random
import threading
from collections.abc import Iterable

import pytest
import vapoursynth as vs

from tests.cases import Make, WeightsOf, maker
from tests.pixels import digest, play, same

GAP = 4
CHAINS = [("FastReal", "FastReal"), ("MIA", "FastReal")]


class Stumbling:
    """A source some frames of which fail.

    Args:
        clip: what it gives otherwise.
        failures: how often each frame fails before it comes; those that are not named never do.
    """

    def __init__(self, clip: vs.VideoNode, failures: dict[int, float]) -> None:
        self.failures = failures
        self._clip = clip
        self._lock = threading.Lock()
        self.node = clip.std.FrameEval(self._give)

    def _give(self, n: int) -> vs.VideoNode:
        with self._lock:
            if self.failures.get(n, 0) > 0:
                self.failures[n] -= 1
                raise RuntimeError(f"frame {n} is unreadable")
        return self._clip


def ask(output: vs.VideoNode, numbers: Iterable[int], in_flight: int = 1) -> tuple[dict[int, str], dict[int, str]]:
    """Digests of the frames that came, and messages of those that failed at least once."""
    came: dict[int, str] = {}
    failed: dict[int, str] = {}
    waiting = []

    def collect() -> None:
        n, future = waiting.pop(0)
        try:
            with future.result(timeout=300) as frame:
                came[n] = digest(frame)
        except vs.Error as error:
            failed[n] = str(error)

    for n in numbers:
        waiting.append((n, output.get_frame_async(n)))
        if len(waiting) >= in_flight:
            collect()
    while waiting:
        collect()
    return came, failed


def scenes_at(clip: vs.VideoNode, cuts: Iterable[int]) -> vs.VideoNode:
    """The clip with marks at the frames that start a scene."""
    for cut in cuts:
        clip = clip[:cut] + clip[cut].std.SetFrameProps(_SceneChangePrev=1) + clip[cut + 1 :]
    return clip


@pytest.fixture
def clip(bikes: vs.VideoNode, name: str) -> vs.VideoNode:
    """Frames on both sides of a restart or of a border of chunks."""
    return bikes[: 26 if name == "FastReal" else 11]


@pytest.fixture
def chained(request: pytest.FixtureRequest, weights_of: WeightsOf) -> Make:
    """Two filters in a row, with the first's output brought back to the size of its source."""
    first, second = (maker(name, weights_of(name)) for name in request.param)

    def make(clip: vs.VideoNode, **more: object) -> vs.VideoNode:
        return second(first(clip, **more).resize.Point(clip.width, clip.height), **more)

    return make


def test_a_frame_the_source_cannot_give_fails_alone(make: Make, clip: vs.VideoNode, core: vs.Core) -> None:
    core.num_threads = 1
    broken = GAP
    output = make(Stumbling(clip, {broken: math.inf}).node)
    for _ in range(2):
        with pytest.raises(vs.Error, match=f"frame {broken} is unreadable"):
            output.get_frame(broken)
    others = [n for n in range(clip.num_frames) if n != broken]
    came, failed = ask(output, others)
    assert not failed
    assert same(came, play(make(scenes_at(clip, [broken, broken + 1])), others))


def test_the_end_of_a_long_complaint_of_the_source_is_told_every_time(make: Make, clip: vs.VideoNode) -> None:
    def complain(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        raise RuntimeError("é" * 700 + " is what went wrong")

    output = make(clip.std.ModifyFrame(clip, complain))
    for _ in range(3):
        with pytest.raises(vs.Error, match="é is what went wrong"):
            output.get_frame(0)


def test_a_part_of_the_filter_that_is_asked_by_itself_says_so(make: Make, clip: vs.VideoNode) -> None:
    output = make(clip)
    (part,) = (node for node in output.dependencies if node.width == output.width)
    with pytest.raises(vs.Error, match="this node is a part of the filter; ask the filter's output for frames"):
        part.get_frame(0)
    assert output.get_frame(0).width == output.width


def test_requests_under_way_fail_with_the_first_failure_of_the_source_and_never_again(
    make: Make, clip: vs.VideoNode, core: vs.Core
) -> None:
    core.num_threads = 8
    rng = random.Random(17)
    broken = {n + GAP for n in (0, 1, 3)}
    good = [n for n in range(clip.num_frames) if n not in broken]
    reference = play(make(scenes_at(clip, {cut for n in broken for cut in (n, n + 1)})), good)
    output = make(Stumbling(clip, dict.fromkeys(broken, math.inf)).node)
    for lap in range(2):
        requests = [rng.randrange(clip.num_frames) for _ in range(clip.num_frames)]
        came, failed = ask(output, requests, in_flight=8)
        assert same(came, reference)
        assert not came.keys() & broken
        assert all("is unreadable" in message for message in failed.values())
        if lap:
            assert failed.keys() <= broken
        output.clear_cache()


def test_a_failure_that_passes_leaves_no_trace(make: Make, clip: vs.VideoNode, core: vs.Core) -> None:
    core.num_threads = 4
    reference = play(make(clip))
    # One failure ends a request, two more make the frame count as absent.
    output = make(Stumbling(clip, {GAP: 3, GAP + 2: 3}).node)
    ask(output, [*range(clip.num_frames), 0], in_flight=4)
    for _ in range(3):
        ask(output, [GAP, GAP + 2])
    came, failed = ask(output, range(clip.num_frames), in_flight=4)
    assert not failed
    assert same(came, reference)


@pytest.mark.parametrize("chained", CHAINS, indirect=True, ids=" ".join)
def test_behind_another_filter_failures_that_pass_leave_no_trace(
    chained: Make, bikes: vs.VideoNode, core: vs.Core
) -> None:
    core.num_threads = 4
    clip = bikes[:24]
    reference = play(chained(clip))
    for failures in (1, 3):
        source = Stumbling(clip, {9: failures, 10: failures, 20: 1})
        output = chained(source.node)
        ask(output, [22, 3, 12, *range(24)], in_flight=4)
        for _ in range(8):
            ask(output, [9, 10])
        came, failed = ask(output, range(24), in_flight=4)
        assert not failed
        assert same(came, reference)


@pytest.mark.parametrize("chained", CHAINS, indirect=True, ids=" ".join)
def test_behind_another_filter_a_frame_that_cannot_be_had_fails_alone(
    chained: Make, bikes: vs.VideoNode, core: vs.Core
) -> None:
    core.num_threads = 4
    rng = random.Random(5)
    clip = bikes[:24]
    broken = {9, 12}
    good = [n for n in range(24) if n not in broken]
    reference = play(chained(scenes_at(clip, [9, 10, 12, 13])), good)
    output = chained(Stumbling(clip, dict.fromkeys(broken, math.inf)).node)
    for _ in range(4):
        ask(output, [23, 15, 8], in_flight=3)
    requests = [rng.randrange(24) for _ in range(24)]
    came, failed = ask(output, requests, in_flight=4)
    assert same(came, reference)
    assert failed.keys() == broken & set(requests)


def test_a_filter_behind_a_preview_says_that_its_frames_are_approximate(
    make: Make, bikes: vs.VideoNode, weights_of: WeightsOf
) -> None:
    clip = bikes[:10]
    preview = maker("FastReal", weights_of("FastReal"))(clip, preview=1, segment=0)
    with preview.get_frame(8) as frame:
        assert frame.props["VSVSRApproximate"] == 1
    with make(preview.resize.Point(48, 32)).get_frame(8) as frame:
        assert frame.props["VSVSRApproximate"] == 1
    with make(clip).get_frame(8) as frame:
        assert "VSVSRApproximate" not in frame.props
