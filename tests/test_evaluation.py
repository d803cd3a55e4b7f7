"""Metrics against values worked out by hand or by the published code."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vsvsr.errors import UserError
from vsvsr.evaluation.compare import score, sheet
from vsvsr.evaluation.metrics import flicker, luma, psnr, round_to_8_bit, ssim
from vsvsr.evaluation.niqe import niqe
from vsvsr.models.fastreal.flow import LightFlow

PUBLISHED_NIQE = 6.56393
"""What BasicSR 1.4.2 gives for the picture of the test."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape)).float()


def test_luma_spans_16_to_235() -> None:
    assert luma(torch.zeros(1, 3, 1, 1)).item() == pytest.approx(16.0)
    assert luma(torch.ones(1, 3, 1, 1)).item() == pytest.approx(235.0)


def test_psnr_of_an_error_of_one_step_is_48_13_db() -> None:
    first = torch.full((2, 1, 4, 4), 100.0)
    assert psnr(first, first + 1).tolist() == pytest.approx([20 * math.log10(255)] * 2)


def test_ssim_is_one_for_equal_pictures_and_falls_with_noise() -> None:
    picture = noise(1, 3, 32, 32) * 255
    assert ssim(picture, picture).item() == pytest.approx(1.0)
    weak, strong = (ssim(picture, picture + noise(1, 3, 32, 32, seed=1) * size).item() for size in (20, 80))
    assert 0.2 < strong < weak < 1.0


def test_ssim_of_two_constants_is_the_ratio_of_their_means() -> None:
    first, second = torch.full((1, 1, 16, 16), 100.0), torch.full((1, 1, 16, 16), 120.0)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    assert ssim(first, second).item() == pytest.approx(expected, rel=1e-9)


def test_a_constant_error_is_steady_and_one_that_comes_and_goes_is_not() -> None:
    truth = noise(3, 1, 24, 24) * 200
    still = torch.zeros(2, 2, 24, 24)
    error = noise(1, 1, 24, 24, seed=1) * 10
    assert flicker(truth + error, truth, still) == pytest.approx(0.0, abs=1e-4)
    blinking = truth + torch.tensor((0.0, 4.0, 0.0)).view(3, 1, 1, 1)
    assert flicker(blinking, truth, still) == pytest.approx(4.0, abs=1e-4)


def test_niqe_gives_the_value_of_the_published_code() -> None:
    # A sum of noise at several scales has about the spectrum of a photograph.
    picture = torch.zeros(1, 1, 288, 384)
    for octave in range(6):
        coarse = noise(1, 1, 9 * 2**octave, 12 * 2**octave, seed=octave)
        picture += torch.nn.functional.interpolate(coarse, (288, 384), mode="bicubic") * 0.6**octave
    luminance = (picture - picture.min()) / (picture.max() - picture.min()) * 219 + 16
    assert niqe(luminance[0, 0]) == pytest.approx(PUBLISHED_NIQE, abs=1e-3)


def test_niqe_refuses_a_picture_that_is_too_small() -> None:
    with pytest.raises(UserError, match="192x192, not 100x300"):
        niqe(torch.zeros(300, 100))


def test_scores_of_a_clip_against_itself_with_an_offset() -> None:
    truth = round_to_8_bit(noise(2, 3, 32, 32) * 0.5)
    scores = score(truth + 2 / 255, truth, LightFlow().requires_grad_(False))
    assert scores.psnr_rgb == pytest.approx(20 * math.log10(255 / 2), abs=1e-3)
    assert scores.flicker == pytest.approx(0.0, abs=1e-3)


def test_clips_of_different_length_are_refused() -> None:
    with pytest.raises(UserError, match=r"32x32, 2 frames .* 32x32, 3 frames"):
        score(noise(2, 3, 32, 32), noise(3, 3, 32, 32), LightFlow())


def test_a_sheet_shows_every_clip_and_frame() -> None:
    clips = {"dark": torch.zeros(4, 3, 40, 50), "light": torch.ones(4, 3, 40, 50) * 0.5}
    picture = sheet(clips, frames=[0, 3], crop=(4, 2, 30, 20))
    assert picture.size == (64, 62)
    assert picture.getpixel((10, 50)) == (0, 0, 0)
    assert picture.getpixel((50, 30)) == (128, 128, 128)
