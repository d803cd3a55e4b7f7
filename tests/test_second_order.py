"""RealBasicVSR's degradation."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vsvsr.training.data.build import DatasetConfig, build_dataset
from vsvsr.training.data.second_order import (
    FIRST,
    _poisson,
    _walk,
    degrade_twice,
    gaussian_kernel,
    resize,
    sharpen,
    sinc_kernel,
)
from vsvsr.video.ffmpeg import through_bitrate


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A soft picture with an edge, ``(h, w, 3)`` uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    frame = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    frame[height // 2 :] //= 2
    return frame


def film(frames: int, height: int, width: int) -> np.ndarray:
    wide = picture(height, width + frames)
    return np.stack([wide[:, step : step + width] for step in range(frames)])


def test_a_clip_is_a_function_of_the_generator_alone_and_has_the_size_of_the_scale() -> None:
    frames = film(4, 64, 80)
    one, same, other = (degrade_twice(frames, np.random.default_rng(seed), scale=4) for seed in (1, 1, 2))
    assert one.shape == (4, 16, 20, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_what_comes_out_shows_what_went_in() -> None:
    frames = film(3, 64, 80)
    plain = frames.reshape(3, 16, 4, 20, 4, 3).mean((2, 4))
    distances = [
        np.abs(degrade_twice(frames, np.random.default_rng(seed), scale=4) - plain).mean() for seed in range(12)
    ]
    # Two unrelated pictures of this kind differ by 60.
    assert 2 < min(distances) < np.median(distances) < 40


def test_gaussians_plateaus_and_turned_axes_are_their_formulas() -> None:
    round_ = gaussian_kernel((1.5, 1.5), 0.7, 21, 1.0, "gaussian")
    line = torch.exp(-0.5 * ((torch.arange(21) - 10) / 1.5) ** 2)
    expected = torch.outer(line, line)
    torch.testing.assert_close(round_, expected / expected.sum())
    long = gaussian_kernel((3.0, 0.5), math.pi / 2, 21, 1.0, "gaussian")  # the long axis stands upright
    assert long[14, 10] > 100 * long[10, 14]
    generalised = gaussian_kernel((2.0, 2.0), 0.0, 21, 2.0, "gaussian")
    assert float(generalised[10, 12] / generalised[10, 10]) == pytest.approx(math.exp(-0.5 * 1.0**2))
    assert float(generalised[10, 14] / generalised[10, 10]) == pytest.approx(math.exp(-0.5 * 4.0**2))
    plateau = gaussian_kernel((2.0, 2.0), 0.0, 21, 1.5, "plateau")
    assert float(plateau[10, 14] / plateau[10, 10]) == pytest.approx(1 / (4.0**1.5 + 1))
    for kernel in (round_, long, generalised, plateau, gaussian_kernel((3.0, 3.0), 0.0, 7, 1.0, "gaussian")):
        assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-5)
    assert not kernel[:7].any()
    assert kernel[7:14, 7:14].all()


def test_the_sinc_filter_keeps_what_is_below_its_cut_off() -> None:
    kernel = sinc_kernel(math.pi / 2, 21)
    assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-5)
    place = torch.arange(21) - 10
    gains = [float((kernel * torch.cos(frequency * place)).sum()) for frequency in (math.pi / 4, 3 * math.pi / 4)]
    assert gains[0] == pytest.approx(1.0, abs=0.1)
    assert gains[1] == pytest.approx(0.0, abs=0.1)
    assert kernel.min() < 0


def test_parameters_wander_within_their_bounds() -> None:
    values = np.array(_walk(np.random.default_rng(0), FIRST.factor, 0.2, 200))
    assert (np.abs(np.diff(values)) <= 0.2).all()
    assert len(set(values)) > 100
    assert values.min() >= 0.15
    assert values.max() <= 1.5
    assert _walk(np.random.default_rng(0), (0.15, 1.5), 0.01, 3, start=1.0)[0] == 1.0


def test_sharpening_lifts_edges_and_leaves_plain_areas() -> None:
    frame = torch.full((3, 80, 80), 100.0)
    frame[:, :, 40:] = 160.0
    sharp = sharpen(frame)
    assert float(sharp[0, 40, 40]) > 165
    assert float(sharp[0, 40, 39]) < 95
    torch.testing.assert_close(sharp[:, :, 1], frame[:, :, 1], rtol=0, atol=0.01)
    weak = torch.full((3, 80, 80), 100.0)
    weak[:, :, 40:] = 110.0  # nothing differs by more than 10 from its surroundings
    assert torch.equal(sharpen(weak), weak)


def test_area_averages_where_it_shrinks_and_interpolates_where_it_enlarges() -> None:
    frame = torch.arange(16.0).view(1, 4, 4).expand(3, -1, -1)
    assert resize(frame, (2, 2), "area")[0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert torch.equal(resize(frame, (8, 8), "area"), resize(frame, (8, 8), "bilinear"))


def test_poisson_noise_grows_with_the_light_and_is_none_in_the_dark() -> None:
    frame = torch.zeros(3, 64, 64)
    frame[:, :, 16:] = 20.0
    frame[:, :, 32:] = 180.0
    noise = _poisson(frame, False, torch.Generator().manual_seed(0))
    assert not noise[:, :, :16].any()
    # Three levels are counted as four.
    assert float(noise[:, :, 16:32].std()) == pytest.approx((20 / 4) ** 0.5, rel=0.1)
    assert float(noise[:, :, 32:].std()) == pytest.approx((180 / 4) ** 0.5, rel=0.1)
    assert _poisson(frame, True, torch.Generator().manual_seed(0)).shape == (1, 64, 64)


def test_fewer_bits_lose_more() -> None:
    noise = np.random.default_rng(0).normal(0, 12, (6, 96, 128, 3))
    frames = np.clip(film(6, 96, 128) + noise, 0, 255).astype(np.uint8)
    for codec in ("libx264", "mpeg4"):
        errors = [
            np.abs(through_bitrate(frames, codec, bits).astype(float) - frames).mean()  # type: ignore[arg-type]
            for bits in (100_000, 1_000)
        ]
        assert errors[0] < 0.95 * errors[1], codec


def test_a_share_of_twice_degraded_clips_leaves_the_truth_and_the_other_clips_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(picture(160, 200)).save(tmp_path / "photos/0.png")
    config = DatasetConfig(clips=4, frames=3, size=(64, 80))
    for name, share in (("none", 0.0), ("some", 0.5)):
        build_dataset(tmp_path / "photos", tmp_path / name, dataclasses.replace(config, second_order_share=share))
    families = []
    for clip in sorted((tmp_path / "none").iterdir()):
        other = tmp_path / "some" / clip.name
        assert np.array_equal(np.load(clip / "gt.npy"), np.load(other / "gt.npy"))
        families.append(json.loads((other / "clip.json").read_text())["family"])
        same = np.array_equal(np.load(clip / "lr.npy"), np.load(other / "lr.npy"))
        assert same == (families[-1] != "second order")
    assert families.count("second order") in (1, 2, 3)
