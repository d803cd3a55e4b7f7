"""FastReal's shipped weights beat bicubic on a clip that they were not trained on."""

import numpy as np
import pytest
import torch
import vapoursynth as vs
from torch import Tensor

from tests.clips import clip_path
from vsvsr.evaluation.metrics import psnr


def pixels(clip: vs.VideoNode) -> Tensor:
    """Frames from the sixth on, ``(t, 3, h, w)`` on the scale 0 to 255."""
    frames = [np.stack([np.asarray(frame[plane]) for plane in range(3)]) for frame in clip.frames()]
    return 255 * torch.from_numpy(np.stack(frames[5:])).clamp(0, 1)


@pytest.mark.parametrize(
    ("model", "scale"),
    [
        ("fastreal-x4", 4),
        ("fastreal-compact-x4", 4),
        ("fastreal-faithful-x4", 4),
        ("fastreal-x2", 2),
        ("fastreal-compact-x2", 2),
    ],
)
def test_fastreal_comes_closer_to_the_truth_than_bicubic(core: vs.Core, model: str, scale: int) -> None:
    truth = core.bs.VideoSource(str(clip_path("bikes.mp4")), cachemode=0)[45:55]
    truth = core.resize.Bicubic(truth, format=vs.RGBS, matrix_in_s="709").std.CropAbs(384, 240, 100, 16)
    small = truth.resize.Bilinear(width=384 // scale, height=240 // scale)
    enlarged = small.vsvsr.FastReal(model=model, device_index=-1)
    assert (enlarged.width, enlarged.height) == (384, 240)
    bicubic = small.resize.Bicubic(width=384, height=240, filter_param_a=0, filter_param_b=0.5)
    gain = psnr(pixels(enlarged), pixels(truth)) - psnr(pixels(bicubic), pixels(truth))
    assert float(gain.mean()) > 0.5
