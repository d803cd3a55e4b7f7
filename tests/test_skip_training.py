"""Training of Skip's confidence estimators, and the shots that they learn from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vsvsr.training.__main__ import main
from vsvsr.training.data.motion import Shot, synthetic_clip
from vsvsr.training.data.pictures import find_pictures, load_photograph
from vsvsr.training.recipes import skip_estimators


def photograph() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)


def test_a_folder_without_photographs_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("none")
    assert main(["skip_estimators", str(tmp_path), str(tmp_path / "out"), "--checkpoint", "BasicVSR_REDS4"]) == 1
    error = f"error: no pictures below {tmp_path}; give a folder with jpg, jpeg or png\n"
    assert capsys.readouterr().err == error


def test_photographs_called_jpeg_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skip_estimators, "SIZE", (144, 144))
    monkeypatch.setattr(skip_estimators, "FRAMES", 3)
    Image.fromarray(photograph()).save(tmp_path / "only.jpeg")
    photographs = [load_photograph(path, skip_estimators.SIZE) for path in find_pictures(tmp_path)]
    torch.manual_seed(0)
    network = skip_estimators.Recorder()
    skip_estimators.record(network, photographs, 1, np.random.default_rng(0))
    for parts in network.samples.values():
        # Frames 1 and 2 after the one before, frame 2 after frame 0; 30 blocks, nine tiles.
        assert len(parts) == 3
        for part in parts:
            assert part.change.shape == (30 * 9, 64)
            assert part.block.tolist() == [block for block in range(30) for _ in range(9)]
            assert (part.change >= 0).all()
            assert (part.cost > 0).all()


def test_an_estimator_learns_costs_that_follow_from_the_changes() -> None:
    torch.manual_seed(0)
    change = torch.rand(1000, 64) * 10.0 ** torch.empty(1000, 1).uniform_(-3, -1)
    cost = 5 * change[:, :32].mean(1)
    samples = skip_estimators.Samples(change, cost, torch.zeros(len(cost), dtype=torch.long))
    estimator = nn.Linear(64, 1)
    assert skip_estimators.fit(estimator, samples, 1.6 / float(cost.median())) > 0.9
    used, unused = estimator.weight.detach()[0].split(32)
    assert float(used.mean()) < float(unused.mean()) < 0


def test_a_shot_shows_what_it_was_asked_for() -> None:
    def clip(shot: Shot) -> np.ndarray:
        rng = np.random.default_rng(3)
        return synthetic_clip([photograph()], rng, frames=6, size=(64, 96), scale=4, shot=shot).frames.astype(int)

    still, moving = (np.abs(np.diff(clip(Shot(camera=camera)), axis=0)) for camera in ("still", "medium"))
    assert still.max() == 0
    assert (moving.mean((1, 2, 3)) > 1).all()
    front = np.abs(np.diff(clip(Shot(camera="still", front="medium")), axis=0)).max((0, 3))
    # The second layer moves, and around it the picture rests.
    assert 0.02 < (front == 0).mean() < 0.98
