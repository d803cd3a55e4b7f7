"""Planes as tensors, and spatial tiles."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
import vapoursynth as vs

from tests.cases import maker
from tests.clips import clip_path
from tests.pixels import planes as picture_of
from tests.pixels import play
from vsvsr.engine.planes import Planes, read
from vsvsr.engine.tiling import spans


def memory(height: int, pitch: int, dtype: torch.dtype) -> tuple[torch.Tensor, Planes]:
    """Three planes of ``pitch`` pixels a row, of which all but 5 belong to the picture."""
    rng = np.random.default_rng(5)
    backing = torch.from_numpy(rng.random((3, height, pitch), dtype=np.float32)).to(dtype)
    stride = pitch * dtype.itemsize
    places = tuple((plane.data_ptr(), stride) for plane in backing)
    return backing, Planes(height, pitch - 5, dtype, places)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_views_lie_on_the_hosts_memory_and_leave_the_padding_alone(dtype: torch.dtype) -> None:
    backing, planes = memory(7, 16, dtype)
    before = backing.clone()
    for plane in planes.views():
        plane.add_(1)
    assert torch.equal(backing[:, :, :11], before[:, :, :11] + 1)
    assert torch.equal(backing[:, :, 11:], before[:, :, 11:])


def test_a_view_never_reaches_beyond_the_last_row() -> None:
    """The last row may end right behind its last pixel."""
    buffer = (ctypes.c_float * (16 * 2 + 11))()
    planes = Planes(3, 11, torch.float32, ((ctypes.addressof(buffer), 64),) * 3)
    assert planes.views()[0].untyped_storage().nbytes() == ctypes.sizeof(buffer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_frame_that_was_read_outlives_the_planes(dtype: torch.dtype) -> None:
    backing, planes = memory(7, 16, dtype)
    expected = backing[:, :, :11].float().clone()
    frame = read(planes, torch.device("cpu"), torch.float32)
    backing.zero_()
    assert torch.equal(frame.pixels[0], expected)
    assert not frame.non_finite


@pytest.mark.parametrize(
    ("length", "tile", "pad"),
    [(100, 0, 16), (100, 32, 0), (100, 32, 8), (97, 32, 16), (33, 32, 4), (100, 16, 0), (100, 16, 4)],
)
def test_weights_of_the_tiles_sum_to_one(length: int, tile: int, pad: int) -> None:
    total = torch.zeros(length * 4)
    for span in spans(length, tile, pad, 24, 4):
        assert span.size >= 24
        total[span.start * 4 : (span.start + span.size) * 4] += span.weight
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


def test_one_tile_over_the_whole_frame_changes_nothing(bikes: vs.VideoNode, tiny_fastreal: Path) -> None:
    make = maker("FastReal", tiny_fastreal)
    assert play(make(bikes, tile=[48, 32]), range(10)) == play(make(bikes), range(10))


def test_without_a_past_tiles_differ_from_the_whole_frame_only_where_they_overlap(
    core: vs.Core, tiny_fastreal: Path
) -> None:
    clip = core.bs.VideoSource(str(clip_path("bikes.mp4")), cachemode=0)[:1]
    clip = core.resize.Bicubic(clip, width=160, height=64, format=vs.RGBS, matrix_in_s="709")
    make = maker("FastReal", tiny_fastreal)
    with make(clip).get_frame(0) as whole, make(clip, tile=[80, 0], tile_pad=16).get_frame(0) as tiled:
        difference = np.abs(picture_of(whole) - picture_of(tiled)).max(axis=(0, 1))
    overlap = slice((80 - 16) * 4, (80 + 16) * 4)
    assert difference[overlap].max() > 1e-3
    difference[overlap] = 0
    assert difference.max() < 1e-5


def test_tiles_keep_the_promise_about_the_order_of_requests(bikes: vs.VideoNode, tiny_fastreal: Path) -> None:
    make = maker("FastReal", tiny_fastreal)
    linear = play(make(bikes[:40], tile=[32, 0], tile_pad=4))
    assert play(make(bikes[:40], tile=[32, 0], tile_pad=4), reversed(range(40)), in_flight=4) == linear
