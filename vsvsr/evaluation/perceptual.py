"""Measures of how a picture looks to a viewer; both come from packages of the extra ``evaluate``."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vsvsr.errors import UserError
from vsvsr.evaluation.compare import Clip
from vsvsr.evaluation.metrics import round_to_8_bit

_INSTALL = 'pip install "vsvsr[evaluate]"'


def erqa(clip: Iterable[Tensor], truth: Iterable[Tensor]) -> float:
    """Mean over the frames of ERQA (Kirillova et al., 2022): the share of the truth's edges restored in place, 0 to 1.

    Args:
        clip: frames ``(3, h, w)`` in [0, 1].
        truth: as many, of the same size.

    Raises:
        UserError: the package is not installed.
    """
    try:
        from erqa import ERQA
    except ImportError:
        raise UserError(f"ERQA needs the package erqa; run: {_INSTALL}") from None
    metric = ERQA()
    pairs = zip(clip, truth, strict=True)
    # Of a black frame it would say 0, however it was restored.
    scores = (1.0 if torch.equal(one, other) else metric(_bgr(one), _bgr(other)) for one, other in pairs)
    return float(np.mean(list(scores)))


def jod(clip: Clip, truth: Clip, *, frames_per_second: float = 25) -> float:
    """ColorVideoVDP (Mantiuk et al., 2024) over the whole clip, on a full-HD monitor.

    In just-objectionable-differences: 10 is indistinguishable, one less is seen by three viewers of four. Flicker
    counts. A few frames are held at a time.

    Args:
        clip: frames ``(3, h, w)`` in [0, 1].
        truth: as many, of the same size.
        frames_per_second: of both.

    Raises:
        UserError: the package is not installed.
    """
    try:
        from pycvvdp import cvvdp
        from pycvvdp.video_source import video_source_dm
    except ImportError:
        raise UserError(f"ColorVideoVDP needs the package cvvdp; run: {_INSTALL}") from None

    class Pair(video_source_dm):  # type: ignore[misc]  # untyped
        """The two clips as the package asks for them; the names are its own."""

        def get_video_size(self) -> tuple[int, int, int]:
            return truth[0].shape[1], truth[0].shape[2], len(truth)

        def get_frames_per_second(self) -> float:
            return frames_per_second

        def get_test_frame(self, frame: int, device: torch.device, colorspace: str) -> Any:
            return self._shown(clip[frame], device, colorspace)

        def get_reference_frame(self, frame: int, device: torch.device, colorspace: str) -> Any:
            return self._shown(truth[frame], device, colorspace)

        def _shown(self, picture: Tensor, device: torch.device, colorspace: str) -> Any:
            encoded = round_to_8_bit(picture.float())[None, :, None].to(device)
            return self.apply_dm_and_color_transform(encoded, colorspace)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    metric = cvvdp(display_name="standard_fhd", quiet=True, device=device)
    value, _ = metric.predict_video_source(Pair(display_photometry=metric.display_photometry))
    return float(value)


def _bgr(picture: Tensor) -> np.ndarray:
    """``(h, w, 3)`` uint8 in OpenCV's order of colours."""
    return np.ascontiguousarray((round_to_8_bit(picture) * 255).round().byte().permute(1, 2, 0).flip(-1).numpy())
