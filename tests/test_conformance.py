"""What must hold for every registered filter."""

import gc
import random
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import vapoursynth as vs

from tests.cases import Make, WeightsOf, maker
from tests.filters import Case
from tests.pixels import digest, planes, play, same
from vsvsr.filters.registry import FILTERS


@pytest.fixture
def clip(bikes: vs.VideoNode, case: Case) -> vs.VideoNode:
    """A real clip with scene changes: two in a row, and one inside a warm-up or an overlap."""
    for cut in case.cuts:
        marked = bikes[cut].std.SetFrameProps(_SceneChangePrev=1)
        bikes = bikes[:cut] + marked + bikes[cut + 1 :]
    return bikes[: case.frames]


ONNX = {"FastReal in ONNX Runtime": "FastReal"}
VARIANTS = {name: name for name in sorted(FILTERS)} | ONNX
"""What the suite runs over, by filter."""


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def name(variant: str) -> str:
    return VARIANTS[variant]


@pytest.fixture
def make(variant: str, name: str, weights_of: WeightsOf) -> Make:
    made = maker(name, weights_of(name))
    if variant not in ONNX:
        return made
    pytest.importorskip("onnxruntime")
    return partial(made, backend="onnx")


_references: dict[str, dict[int, str]] = {}
_sessions: list[object] = []
"""Of ONNX Runtime, kept open for the filters to come: to open one takes as long as hundreds of small frames."""


@pytest.fixture
def reference(variant: str, make: Make, clip: vs.VideoNode, core: vs.Core) -> dict[int, str]:
    """Linear playback, one request at a time, on one thread."""
    if variant not in _references:
        core.num_threads = 1
        output = make(clip)
        _references[variant] = play(output)
        if variant in ONNX:
            from vsvsr.engine import onnx

            _sessions.extend(onnx._open.values())
    return _references[variant]


def jitter(clip: vs.VideoNode, seed: int = 0) -> vs.VideoNode:
    """The clip from a source that takes 0 to 6 ms a frame."""
    rng = random.Random(seed)

    def late(n: int) -> vs.VideoNode:
        time.sleep(rng.uniform(0, 0.006))
        return clip

    return clip.std.FrameEval(late)


def counted(clip: vs.VideoNode) -> tuple[vs.VideoNode, Counter[int]]:
    """The clip, and how often each of its frames was rendered."""
    times: Counter[int] = Counter()

    def count(n: int) -> vs.VideoNode:
        times[n] += 1
        return clip

    return clip.std.FrameEval(count), times


def test_no_two_frames_of_the_reference_are_alike(reference: dict[int, str], case: Case) -> None:
    assert len(set(reference.values())) == len(reference) == case.frames


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_linear_playback_is_the_same_on_any_number_of_threads(
    make: Make, clip: vs.VideoNode, reference: dict[int, str], core: vs.Core, threads: int
) -> None:
    core.num_threads = threads
    assert same(play(make(jitter(clip)), in_flight=threads), reference)


@pytest.mark.parametrize("in_flight", [1, 6])
def test_reversed_playback_gives_the_pixels_of_linear_playback(
    make: Make, clip: vs.VideoNode, reference: dict[int, str], core: vs.Core, in_flight: int
) -> None:
    core.num_threads = 8
    assert same(play(make(jitter(clip)), reversed(range(clip.num_frames)), in_flight), reference)


def test_random_requests_with_8_in_flight_give_the_pixels_of_linear_playback(
    make: Make, case: Case, clip: vs.VideoNode, reference: dict[int, str], core: vs.Core
) -> None:
    core.num_threads = 8
    rng = random.Random(11)
    output = make(jitter(clip))
    for _ in range(3):
        requests = [rng.randrange(case.frames) for _ in range(case.requests // 3)]
        assert same(play(output, requests, in_flight=8), reference)
        output.clear_cache()


def test_seeks_across_restarts_cuts_and_the_end_give_the_pixels_of_linear_playback(
    make: Make, case: Case, clip: vs.VideoNode, reference: dict[int, str], core: vs.Core
) -> None:
    core.num_threads = 4
    output = make(clip)
    landmarks = sorted({*case.restarts, *case.cuts, case.frames - 1})
    rng = random.Random(3)
    rng.shuffle(landmarks)
    for place in landmarks:
        around = [n for n in (place, place + 1, place - 1, place - 2, place + 2) if 0 <= n < case.frames]
        assert same(play(output, around, in_flight=2), reference)
        output.clear_cache()


def test_two_outputs_read_in_turns_give_the_pixels_of_linear_playback(
    make: Make, clip: vs.VideoNode, reference: dict[int, str], core: vs.Core
) -> None:
    core.num_threads = 8
    output = make(clip)
    half = output.num_frames // 2
    halves = core.std.StackHorizontal([output[:half], output[half:]])
    width = output.width
    for n in range(half):
        with halves.get_frame(n) as frame:
            both = planes(frame)
        for first, number in ((0, n), (width, n + half)):
            with output.get_frame(number) as alone:
                assert digest(alone) == reference[number]
                assert np.array_equal(both[:, :, first : first + width], planes(alone))


def test_temporal_filters_and_decimation_downstream_change_nothing(
    make: Make, clip: vs.VideoNode, reference: dict[int, str], core: vs.Core
) -> None:
    core.num_threads = 8
    core.max_cache_size = 1
    output = make(jitter(clip))
    assert same({3 * n: fresh for n, fresh in play(output[::3], in_flight=8).items()}, reference)
    averaged = play(output.std.AverageFrames([1, 1, 1]), in_flight=8)
    evaluated = output.std.FrameEval(lambda n: output)
    assert same(play(evaluated, in_flight=8), reference)
    core.num_threads, core.max_cache_size = 1, 1000
    assert same(averaged, play(make(clip).std.AverageFrames([1, 1, 1])))


def test_two_filters_on_one_clip_do_not_disturb_each_other(
    make: Make, clip: vs.VideoNode, reference: dict[int, str], core: vs.Core
) -> None:
    core.num_threads = 8
    first, second = make(clip), make(clip)
    both = core.std.Interleave([first, second])
    result = play(both, in_flight=8)
    assert same({n // 2: fresh for n, fresh in result.items() if n % 2 == 0}, reference)
    assert same({n // 2: fresh for n, fresh in result.items() if n % 2 == 1}, reference)


def test_a_new_filter_after_the_old_one_is_gone_gives_the_same_pixels(
    make: Make, case: Case, clip: vs.VideoNode, reference: dict[int, str]
) -> None:
    middle = case.frames // 2
    play(make(clip), range(middle - 5, middle + 2))
    gc.collect()
    assert same(play(make(clip), range(middle - 2, middle + 5)), reference)


def test_linear_playback_at_8_threads_runs_the_network_no_more_than_documented(
    make: Make, case: Case, clip: vs.VideoNode, core: vs.Core
) -> None:
    core.num_threads = 8
    output = make(jitter(clip))
    play(output, in_flight=8)
    stats = core.vsvsr.Stats(output)
    assert stats["renders"] == case.frames
    assert case.frames <= stats["steps"] + stats["warmup_steps"] <= case.network_runs
    assert stats["seeks"] == stats["replays"] == 0


def test_linear_playback_renders_each_source_frame_at_most_twice_and_mostly_once(
    make: Make, case: Case, clip: vs.VideoNode, core: vs.Core
) -> None:
    core.num_threads = 8
    source, times = counted(clip)
    play(make(source), in_flight=8)
    assert set(times) == set(range(case.frames))
    assert max(times.values()) <= 2
    assert sum(times.values()) <= case.network_runs


def test_output_has_the_format_and_the_scaled_size_of_the_source(make: Make, case: Case, bikes: vs.VideoNode) -> None:
    output = make(bikes)
    assert (output.width, output.height) == (48 * case.scale, 32 * case.scale)
    assert output.format.id == vs.RGBS
    assert (output.num_frames, output.fps) == (bikes.num_frames, bikes.fps)


@pytest.mark.parametrize(("width", "height"), [(16, 16), (17, 16), (16, 35), (33, 31), (65, 50), (100, 20)])
def test_odd_and_small_sizes_give_finite_pictures(
    make: Make, case: Case, bikes: vs.VideoNode, width: int, height: int
) -> None:
    output = make(bikes[:3].resize.Bicubic(width=width, height=height))
    with output.get_frame(2) as frame:
        picture = planes(frame)
    assert picture.shape == (3, height * case.scale, width * case.scale)
    assert np.isfinite(picture).all()


ABSURD = {float("nan"): 0.0, float("inf"): 2.0, float("-inf"): -1.0, 1e30: 2.0, -1e4: -1.0}
"""Samples that no picture has, and what networks see in their place."""


def with_samples(clip: vs.VideoNode, n: int, samples: Iterable[float]) -> vs.VideoNode:
    """The clip with these samples at some places of frame ``n``."""

    def write(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        copy = f.copy()
        for place, sample in enumerate(samples, 1):
            for plane in range(3):
                np.asarray(copy[plane])[5 * place, 7 * place + plane] = sample
        return copy

    return clip[:n] + clip[n].std.ModifyFrame(clip[n], write) + clip[n + 1 :]


def test_samples_that_are_not_finite_count_as_0_or_the_bounds_and_touch_nothing_beyond_a_cut(
    make: Make, case: Case, clip: vs.VideoNode, reference: dict[int, str]
) -> None:
    cut = case.cuts[0]
    absurd = make(with_samples(clip, 3, ABSURD))
    bounded = make(with_samples(clip, 3, ABSURD.values()))
    for n in (2, 3, 4):
        with absurd.get_frame(n) as frame, bounded.get_frame(n) as expected:
            assert np.isfinite(planes(frame)).all()
            assert digest(frame) == digest(expected)
            assert frame.props.get("VSVSRNonFinite", 0) == (n == 3)
            assert "VSVSRNonFinite" not in expected.props
            assert n != 3 or digest(frame) != reference[n]
    assert same(play(absurd, range(cut, cut + 3)), reference)


def test_absurd_samples_fade(make: Make, case: Case, bikes: vs.VideoNode) -> None:
    clip, first = bikes[:12], 4 + case.fade.frames
    clean, absurd = (make(source, **case.fade.arguments) for source in (clip, with_samples(clip, 4, ABSURD)))
    for n in range(first, 12):
        with clean.get_frame(n) as frame, absurd.get_frame(n) as changed:
            assert np.abs(planes(frame) - planes(changed)).max() <= case.fade.distance, n


def test_half_precision_differs_from_single_by_rounding_alone(make: Make, bikes: vs.VideoNode) -> None:
    bikes = bikes[:10]
    half = bikes.resize.Bicubic(format=vs.RGBH)
    with make(half).get_frame(9) as frame, make(half.resize.Bicubic(format=vs.RGBS)).get_frame(9) as exact:
        assert frame.format.id == vs.RGBH
        picture, wanted = planes(frame), planes(exact)
    assert np.abs(picture - wanted).max() <= np.abs(wanted).max() * 2**-10


def test_properties_of_the_source_frame_are_carried_over(make: Make, bikes: vs.VideoNode) -> None:
    marked = bikes[:4].std.SetFrameProps(mine=5, _Matrix=1, _Range=0)
    with make(marked).get_frame(3) as frame, marked.get_frame(3) as source:
        assert frame.props["mine"] == 5
        assert frame.props["_DurationNum"] == source.props["_DurationNum"]
        assert frame.props["_SARNum"] == source.props["_SARNum"]
        # A picture in RGB has one matrix and one range, whatever the source said.
        assert (frame.props["_Matrix"], frame.props["_Range"]) == (0, 1)


def test_requests_that_nobody_waits_for_leave_the_filter_usable(
    make: Make, case: Case, clip: vs.VideoNode, reference: dict[int, str], core: vs.Core
) -> None:
    core.num_threads = 8
    output = make(jitter(clip))
    far = case.frames * 2 // 3
    abandoned = [output.get_frame_async(n) for n in range(far, case.frames)]
    assert same(play(output, range(5)), reference)
    for future in abandoned:
        future.result(timeout=300).close()
    assert same(play(output, range(far - 3, far + 5), in_flight=8), reference)


def test_stats_tell_the_tiles(make: Make, bikes: vs.VideoNode, core: vs.Core) -> None:
    stats = core.vsvsr.Stats(make(bikes[:2], tile=[48, 32]))
    assert (stats["tile_width"], stats["tile_height"]) == (48, 32)
    stats = core.vsvsr.Stats(make(bikes[:2], tile=[0, 0]))
    assert (stats["tile_width"], stats["tile_height"]) == (0, 0)


RESIZE = "convert it with core.resize.Bicubic(clip, format=vs.RGBS"
WRONG_CLIPS = {
    "YUV420P8": f'the clip is YUV420P8, allowed are RGBS and RGBH; {RESIZE}, matrix_in_s="170m")',
    "RGB24": f"the clip is RGB24, allowed are RGBS and RGBH; {RESIZE})",
    "GRAYS": f'the clip is GrayS, allowed are RGBS and RGBH; {RESIZE}, matrix_in_s="170m")',
}


@pytest.mark.parametrize("wrong", sorted(WRONG_CLIPS))
def test_a_clip_of_another_format_is_refused_with_the_conversion_to_use(
    name: str, make: Make, core: vs.Core, wrong: str
) -> None:
    with pytest.raises(vs.Error) as caught:
        make(core.std.BlankClip(width=64, height=48, format=getattr(vs, wrong)))
    assert str(caught.value) == f"{name}: {WRONG_CLIPS[wrong]}"


def test_the_conversion_in_the_message_works(make: Make, core: vs.Core) -> None:
    clip = core.std.BlankClip(width=64, height=48, format=vs.YUV420P8)
    with pytest.raises(vs.Error) as caught:
        make(clip)
    converted = eval(str(caught.value).split("convert it with ")[1], {"core": core, "vs": vs, "clip": clip})
    make(converted).get_frame(0).close()


def test_a_clip_that_is_too_small_is_refused(name: str, make: Make, core: vs.Core) -> None:
    with pytest.raises(vs.Error) as caught:
        make(core.std.BlankClip(width=64, height=15, format=vs.RGBS))
    assert str(caught.value) == f"{name}: the clip is 64x15, the smallest possible is 16x16"


def test_a_clip_whose_size_varies_is_refused(name: str, make: Make, core: vs.Core) -> None:
    parts = [core.std.BlankClip(width=width, height=48, format=vs.RGBS, length=2) for width in (64, 80)]
    with pytest.raises(vs.Error) as caught:
        make(core.std.Splice(parts, mismatch=True))
    assert str(caught.value) == (
        f"{name}: the clip's format or size varies; make it constant, for example with "
        "core.resize.Bicubic(clip, width=640, height=360, format=vs.RGBS)"
    )


WRONG_ARGUMENTS = [
    ({"device_index": -2}, "device_index=-2 is not possible; allowed: -1 (CPU)"),
    ({"device_index": 99}, "device_index=99 is not possible; allowed: -1 (CPU)"),
    ({"tile": [8, 8]}, "tile=[8, 8] is not possible; allowed: width and height, each 0 (off) or at least 32"),
    ({"tile": 64}, "tile=[64] is not possible; allowed: width and height, each 0 (off) or at least 32"),
    ({"tile_pad": -1}, "tile_pad=-1 is not possible; allowed: 0 or more"),
    ({"model": "fastreal-compact-x4"}, "is not possible; allowed: either model or model_path, not both"),
    (
        {"model_path": "/nowhere/weights.safetensors"},
        "model_path='/nowhere/weights.safetensors' is not possible; allowed: an existing file",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_ARGUMENTS)
def test_a_wrong_argument_is_refused_in_one_line(
    name: str, make: Make, bikes: vs.VideoNode, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(vs.Error) as caught:
        make(bikes, **arguments)
    assert str(caught.value).startswith(f"{name}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_weights_file_that_is_none_is_refused_in_one_line(
    name: str, make: Make, bikes: vs.VideoNode, tmp_path: Path
) -> None:
    foreign = tmp_path / "weights.safetensors"
    foreign.write_bytes(b"no tensors here")
    with pytest.raises(vs.Error) as caught:
        make(bikes, model_path=str(foreign))
    assert str(caught.value).startswith(f"{name}: ")
    assert str(foreign) in str(caught.value)
    assert "\n" not in str(caught.value)
