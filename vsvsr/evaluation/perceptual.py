"""Measures of how a picture looks to a viewer; both come from packages of the extra ``evaluate``."""

import numpy as np
from torch import Tensor

from vsvsr.errors import UserError
from vsvsr.evaluation.metrics import round_to_8_bit

_INSTALL = 'pip install "vsvsr[evaluate]"'


def erqa(clip: Tensor, truth: Tensor) -> float:
    """Mean over the frames of ERQA (Kirillova et al., 2022): the share of the truth's edges restored in place, 0 to 1.

    Args:
        clip: ``(t, 3, h, w)`` in [0, 1].
        truth: the same shape.

    Raises:
        UserError: the package is not installed.
    """
    try:
        from erqa import ERQA
    except ImportError:
        raise UserError(f"ERQA needs the package erqa; run: {_INSTALL}") from None
    metric = ERQA()
    pairs = zip(_bgr(clip), _bgr(truth), strict=True)
    return float(np.mean([metric(picture, reference) for picture, reference in pairs]))


def jod(clip: Tensor, truth: Tensor, *, frames_per_second: float = 25) -> float:
    """ColorVideoVDP (Mantiuk et al., 2024) over the whole clip, on a full-HD monitor.

    In just-objectionable-differences: 10 is indistinguishable, one less is seen by three viewers of four. Flicker
    counts.

    Args:
        clip: ``(t, 3, h, w)`` in [0, 1].
        truth: the same shape.
        frames_per_second: of both.

    Raises:
        UserError: the package is not installed.
    """
    try:
        from pycvvdp import cvvdp
    except ImportError:
        raise UserError(f"ColorVideoVDP needs the package cvvdp; run: {_INSTALL}") from None
    metric = cvvdp(display_name="standard_fhd", quiet=True, device=clip.device)
    frames = round_to_8_bit(clip.float())
    value, _ = metric.predict(frames, truth.float(), dim_order="FCHW", frames_per_second=frames_per_second)
    return float(value)


def _bgr(clip: Tensor) -> np.ndarray:
    """``(t, h, w, 3)`` uint8 in OpenCV's order of colours."""
    return np.ascontiguousarray((round_to_8_bit(clip) * 255).round().byte().permute(0, 2, 3, 1).flip(-1).numpy())
