"""Cuts that no property marks: found by the filters themselves."""

import itertools
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import vapoursynth as vs
from torch import Tensor

from tests.cases import Make
from tests.clips import clip_path
from tests.pixels import planes, play, same
from vsvsr.engine.planes import Planes
from vsvsr.engine.scenes import SceneDetector

BIKES_CUTS = [30, 76, 137, 187, 242]


@dataclass
class Looks:
    """What a detector keeps of the frames of a clip."""

    detector: SceneDetector
    looks: list[Tensor]

    def cuts(self, step: int = 1) -> list[int]:
        pairs = enumerate(zip(self.looks, self.looks[step:], strict=False), step)
        return [n for n, (before, after) in pairs if self.detector.is_cut(before, after)]


def look_at(detector: SceneDetector, picture: np.ndarray) -> Tensor:
    """The detector's look at a picture ``(3, h, w)``."""
    picture = np.ascontiguousarray(picture, dtype=np.float32)
    places = tuple((plane.ctypes.data, plane.strides[0]) for plane in picture)
    return detector.look(Planes(*picture.shape[1:], torch.float32, places))


def looks_of(name: str, core: vs.Core) -> Looks:
    detector = SceneDetector()
    clip = core.bs.VideoSource(str(clip_path(name)), cachemode=0).resize.Bicubic(format=vs.RGBS, matrix_in_s="709")
    return Looks(detector, [look_at(detector, planes(frame)) for frame in clip.frames(close=True)])


@pytest.fixture(scope="module")
def bikes_looks() -> Looks:
    return looks_of("bikes.mp4", vs.core.core)


@pytest.fixture(scope="module")
def bunny_looks() -> Looks:
    return looks_of("bigbuckbunny.mp4", vs.core.core)


@pytest.fixture
def street(core: vs.Core) -> np.ndarray:
    """A picture with detail everywhere."""
    clip = core.bs.VideoSource(str(clip_path("bikes.mp4")), cachemode=0)
    with clip.resize.Bicubic(format=vs.RGBS, matrix_in_s="709").get_frame(100) as frame:
        return planes(frame)


def test_the_cuts_of_real_clips_are_found_and_nothing_else(bikes_looks: Looks, bunny_looks: Looks) -> None:
    assert bikes_looks.cuts() == BIKES_CUTS
    assert bunny_looks.cuts() == []
    assert bunny_looks.cuts(step=2) == []


def test_at_least_nine_of_ten_splices_of_two_scenes_are_found(bikes_looks: Looks, bunny_looks: Looks) -> None:
    rng = random.Random(1)
    pairs = [(rng.choice(bikes_looks.looks), rng.choice(bunny_looks.looks)) for _ in range(100)]
    detector = bikes_looks.detector
    assert sum(detector.is_cut(before, after) for before, after in pairs) >= 90
    assert sum(detector.is_cut(after, before) for before, after in pairs) >= 90


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.19])
def test_a_pan_is_no_cut(street: np.ndarray, share: float) -> None:
    detector = SceneDetector()
    shift = round(street.shape[2] * share)
    before, after = street[:, :, :-shift], street[:, :, shift:]
    assert not detector.is_cut(look_at(detector, before), look_at(detector, after))
    assert not detector.is_cut(look_at(detector, after), look_at(detector, before))


def test_noise_brightness_and_dissolves_are_no_cuts(street: np.ndarray, bikes_looks: Looks) -> None:
    detector = SceneDetector()
    rng = np.random.default_rng(0)
    noisy = [look_at(detector, street + rng.normal(0, 24 / 255, street.shape)) for _ in range(2)]
    assert not detector.is_cut(*noisy)
    clean = look_at(detector, street)
    assert not detector.is_cut(clean, look_at(detector, street * 0.6))
    assert not detector.is_cut(clean, look_at(detector, street * 1.4))
    first, second = bikes_looks.looks[20], bikes_looks.looks[50]
    steps = [first + (second - first) * i / 8 for i in range(9)]
    assert not any(detector.is_cut(before, after) for before, after in itertools.pairwise(steps))


def test_samples_that_are_no_numbers_count_as_black() -> None:
    detector = SceneDetector()
    picture = np.full((3, 40, 50), 0.5, dtype=np.float32)
    picture[0, 3, 4], picture[1, 20, 20] = np.nan, np.inf
    assert bool(look_at(detector, picture).isfinite().all())


@pytest.fixture
def spliced(core: vs.Core, bikes: vs.VideoNode) -> vs.VideoNode:
    """Two scenes with a cut at frame 5 that nothing marks, 48x32."""
    bunny = core.bs.VideoSource(str(clip_path("bigbuckbunny.mp4")), cachemode=0)
    return bikes[:5] + core.resize.Bicubic(bunny[60:66], width=48, height=32, format=vs.RGBS, matrix_in_s="709")


def test_a_cut_that_nothing_marks_counts_as_a_marked_one(make: Make, spliced: vs.VideoNode) -> None:
    marked = spliced[:5] + spliced[5].std.SetFrameProps(_SceneChangePrev=1) + spliced[6:]
    reference = play(make(marked, scene_change=2))
    assert same(play(make(spliced)), reference)
    assert same(play(make(spliced), [8, 3, 5, 10, 4]), reference)


def test_with_properties_only_a_cut_that_nothing_marks_is_none(make: Make, spliced: vs.VideoNode) -> None:
    through = play(make(spliced, scene_change=0))
    assert same(play(make(spliced, scene_change=2)), through)
    assert play(make(spliced), [5])[5] != through[5]
