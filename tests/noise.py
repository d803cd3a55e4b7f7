"""Clips of noise for tests of training."""

import json
from pathlib import Path

import numpy as np

from vsvsr.training.data.clips import Clips


def moving_noise(folder: Path, *, side: int, step: int) -> Clips:
    """Two clips for training, of noise that moves by ``step`` pixels of the large frames; these are squares."""
    rng = np.random.default_rng(0)
    small = side // 4
    for name in ("0", "1"):
        (folder / name).mkdir()
        picture = rng.integers(0, 256, (1, side, side, 3), dtype=np.uint8)
        truth = np.concatenate([np.roll(picture, step * frame, axis=2) for frame in range(4)])
        np.save(folder / name / "gt.npy", truth)
        np.save(folder / name / "lr.npy", truth.reshape(4, small, 4, small, 4, 3).mean((2, 4)).astype(np.uint8))
        (folder / name / "clip.json").write_text(json.dumps({"scale": 4}))
    return Clips(folder, scale=4)
