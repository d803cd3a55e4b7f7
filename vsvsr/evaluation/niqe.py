"""NIQE (Mittal, Soundararajan and Bovik, 2013) with the official parameters, without a reference; lower is better."""

import math
from functools import cache
from importlib.resources import files

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr.errors import UserError

_BLOCK = 96
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))


@cache
def _pristine() -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Mean ``(36,)`` and covariance ``(36, 36)`` of pristine pictures, and the 7x7 window of the local mean."""
    with (files("vsvsr.evaluation") / "niqe_pristine.npz").open("rb") as file, np.load(file) as values:
        mean, covariance = values["mu_pris_param"][0], values["cov_pris_param"]
        return mean, covariance, torch.from_numpy(values["gaussian_window"]).double()


@cache
def _shape_table() -> tuple[np.ndarray, np.ndarray]:
    """Shape parameters 0.2 to 10 and the ratio of moments of each."""
    shapes = np.arange(0.2, 10.001, 0.001)
    log_gamma = np.vectorize(math.lgamma)
    return shapes, np.exp(2 * log_gamma(2 / shapes) - log_gamma(1 / shapes) - log_gamma(3 / shapes))


def _asymmetric_gaussian(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shape, left and right scale of an asymmetric generalised Gaussian for each block ``(n, h, w)``."""
    flat = blocks.reshape(len(blocks), -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        squares, negative, positive = flat**2, flat < 0, flat > 0
        left = np.sqrt((squares * negative).sum(1) / negative.sum(1))
        right = np.sqrt((squares * positive).sum(1) / positive.sum(1))
        skew = left / right
        ratio = np.abs(flat).mean(1) ** 2 / squares.mean(1)
        ratio = ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shapes, moments = _shape_table()
    shape = np.array([shapes[np.argmin((moments - value) ** 2)] for value in ratio])
    spread = np.array([math.exp(0.5 * (math.lgamma(1 / value) - math.lgamma(3 / value))) for value in shape])
    return shape, left * spread, right * spread


def _features(blocks: np.ndarray) -> np.ndarray:
    """18 statistics of each block of normalised luminance: ``(n, 18)``."""
    shape, left, right = _asymmetric_gaussian(blocks)
    columns = [shape, (left + right) / 2]
    for shift in _SHIFTS:
        shape, left, right = _asymmetric_gaussian(blocks * np.roll(blocks, shift, axis=(1, 2)))
        factor = np.array([math.exp(math.lgamma(2 / value) - math.lgamma(1 / value)) for value in shape])
        columns += [shape, (right - left) * factor, left, right]
    return np.stack(columns, axis=1)


def _half_matrix(size: int) -> Tensor:
    """MATLAB's bicubic reduction to half with anti-aliasing and mirrored borders, ``(size / 2, size)``."""
    matrix = torch.zeros(size // 2, size, dtype=torch.float64)
    for row in range(size // 2):
        centre = 2 * row + 0.5
        taps = np.arange(math.floor(centre) - 4, math.floor(centre) + 6)
        distance = np.abs(centre - taps) / 2
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = np.where(distance <= 1, near, np.where(distance <= 2, far, 0.0))
        mirrored = np.where(taps < 0, -1 - taps, np.where(taps >= size, 2 * size - 1 - taps, taps))
        for column, weight in zip(mirrored, weights / weights.sum(), strict=True):
            matrix[row, int(column)] += float(weight)
    return matrix


def niqe(luminance: Tensor) -> float:
    """Distance from the statistics of pristine pictures.

    Args:
        luminance: Y on the scale 0 to 255 (`vsvsr.evaluation.metrics.luma`), ``(h, w)``, sides of at least 192.

    Returns:
        NaN where the picture is flat.

    Raises:
        UserError: the picture is too small for a covariance of its blocks.
    """
    pristine_mean, pristine_covariance, window = _pristine()
    rows, columns = luminance.shape[0] // _BLOCK, luminance.shape[1] // _BLOCK
    if rows < 2 or columns < 2:
        raise UserError(f"NIQE needs pictures of at least 192x192, not {luminance.shape[1]}x{luminance.shape[0]}")
    image = luminance[: rows * _BLOCK, : columns * _BLOCK].double().round()
    features = []
    for block in (_BLOCK, _BLOCK // 2):
        padded = F.pad(torch.stack((image, image**2))[:, None], (3, 3, 3, 3), mode="replicate")
        mean, square = F.conv2d(padded, window[None, None])[:, 0]
        normalised = (image - mean) / ((square - mean**2).abs().sqrt() + 1)
        blocks = normalised.view(rows, block, columns, block).permute(2, 0, 1, 3).reshape(-1, block, block)
        features.append(_features(blocks.numpy()))
        if block == _BLOCK:
            image = _half_matrix(image.shape[0]) @ image @ _half_matrix(image.shape[1]).T
    statistics = np.concatenate(features, axis=1)
    known = statistics[~np.isnan(statistics).any(axis=1)]
    if len(known) < 2:  # black, or flat
        return math.nan
    covariance = np.cov(known, rowvar=False)
    difference = pristine_mean - np.nanmean(statistics, axis=0)
    inverse = np.linalg.pinv((pristine_covariance + covariance) / 2)
    return float(np.sqrt(difference @ inverse @ difference))
