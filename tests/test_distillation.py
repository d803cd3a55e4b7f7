"""Teaching FastReal by a published network: the teacher's pictures, and what a network learns from them."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from vsvsr import weights
from vsvsr.models.fastreal import PLAIN
from vsvsr.models.fastreal import load as load_fastreal
from vsvsr.models.realesrgan import load_ncnn
from vsvsr.training.__main__ import main
from vsvsr.training.data.build import DatasetConfig, build_dataset
from vsvsr.training.data.degradation import Degradation, capture

TEACHER = "realesr-animevideov3"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of eq. 9, a noisy and a heavily degraded one, with the teacher's pictures."""
    photographs, target = tmp_path_factory.mktemp("photographs"), tmp_path_factory.mktemp("data") / "clips"
    coarse = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize((480, 400), Image.Resampling.BICUBIC).save(photographs / "0.png")
    config = DatasetConfig(clips=1, frames=6, size=(96, 128))
    build_dataset(photographs, target, config)
    noisy = DatasetConfig(clips=2, frames=6, size=(96, 128), noisy_share=1.0)
    build_dataset(photographs, target, noisy)
    heavy = DatasetConfig(clips=3, frames=6, size=(96, 128), heavy_share=1.0)
    build_dataset(photographs, target, heavy)
    assert main(["teach", str(target), "--teacher", TEACHER]) == 0
    return target


def _family(clip: Path) -> str:
    return str(json.loads((clip / "clip.json").read_text())["family"])


def _enlarged(frame: np.ndarray) -> np.ndarray:
    network = load_ncnn(TEACHER, weights.install(TEACHER))
    with torch.inference_mode():
        picture = network(torch.from_numpy(frame).permute(2, 0, 1)[None] / 255)[0]
    return picture.clamp(0, 1).mul(255).permute(1, 2, 0).numpy()


def test_the_teacher_sees_degraded_frames_but_noisy_captures_without_their_noise(clips: Path) -> None:
    usual, noisy = clips / "00000", clips / "00001"
    assert (_family(usual), _family(noisy)) == ("eq. 9", "noisy capture")
    facts = json.loads((noisy / "clip.json").read_text())
    optics = {name: facts[name] for name in ("sigma", "angle", "resize", "crf")}
    clean = capture(np.load(noisy / "gt.npy"), Degradation(noise=0.0, **optics), scale=4, seed=0)
    for clip, seen in ((usual, np.load(usual / "lr.npy")), (noisy, clean)):
        pictures = np.load(clip / f"teacher-{TEACHER}.npy")
        assert pictures.shape == np.load(clip / "gt.npy").shape
        # Written in bfloat16: up to a few steps of 255 from fp32.
        assert np.abs(pictures[3] - _enlarged(seen[3])).mean() < 1.5
    assert np.abs(clean.astype(float) - np.load(noisy / "lr.npy")).mean() > 2


def test_teaching_again_leaves_finished_clips_alone(clips: Path) -> None:
    path = clips / "00001" / f"teacher-{TEACHER}.npy"
    written = path.stat().st_mtime_ns
    (clips / "00000" / f"teacher-{TEACHER}.npy").unlink()
    assert main(["teach", str(clips), "--teacher", TEACHER]) == 0
    assert path.stat().st_mtime_ns == written
    assert (clips / "00000" / f"teacher-{TEACHER}.npy").exists()


def _distill(clips: Path, run: Path, *options: str) -> int:
    size = ("--frames", "4", "--chunk", "4", "--crop", "16", "--batch", "1", "--warmup", "1", "--steps", "2")
    teachers = ("--teacher", TEACHER, "--heavy-teacher", TEACHER)
    return main(["distill", str(clips), str(clips), str(run), *teachers, *size, *options])


def _first_losses(run: Path) -> dict[str, float]:
    with (run / "log.csv").open() as file:
        return {name: float(value) for name, value in next(csv.DictReader(file)).items()}


def test_a_warm_start_is_distilled_into_a_recurrent_network_that_says_how_it_was_made(
    clips: Path, tmp_path: Path
) -> None:
    assert _distill(clips, tmp_path / "run") == 0
    path = tmp_path / "run" / "last.safetensors"
    assert load_fastreal(path).network.config == PLAIN
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["step"], metadata["seed"]) == ("2", "0")
    assert metadata["command"].startswith("python -m vsvsr.training distill ")
    header = (tmp_path / "run" / "log.csv").read_text().splitlines()[0].split(",")
    assert {"teacher", "truth", "temporal_consistency"} <= set(header)


def test_a_warm_start_takes_the_attention_that_is_asked_for(clips: Path, tmp_path: Path) -> None:
    assert _distill(clips, tmp_path / "run", "--hsa", "none") == 0
    assert load_fastreal(tmp_path / "run" / "last.safetensors").network.config == replace(PLAIN, hsa="none")


def test_a_network_of_scale_2_learns_from_halved_pictures(clips: Path, tmp_path: Path) -> None:
    runs = {"published": (), "started": ("--start", str(tmp_path / "published/last.safetensors"))}
    for name, start in runs.items():
        assert _distill(clips, tmp_path / name, "--steps", "1", *start) == 0
    assert _distill(clips, tmp_path / "halved", "--steps", "1", "--scale", "2") == 0
    assert _distill(clips, tmp_path / "from x4", "--steps", "1", "--scale", "2", *runs["started"]) == 0
    for whole, half in (("published", "halved"), ("started", "from x4")):
        assert load_fastreal(tmp_path / half / "last.safetensors").network.scale == 2
        # The means of four distances are less than those of single pixels, and not by an order.
        losses, halved = _first_losses(tmp_path / whole), _first_losses(tmp_path / half)
        assert 0.5 * losses["teacher"] < halved["teacher"] < losses["teacher"]


def test_clips_of_scale_2_are_not_taught(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = shutil.copytree(clips / "00000", tmp_path / "clips/00000")
    (clip / "clip.json").write_text(json.dumps({"scale": 2, "family": "eq. 9"}))
    assert main(["teach", str(tmp_path / "clips"), "--teacher", TEACHER]) == 1
    assert "00000 was made for scale 2, the network has scale 4" in capsys.readouterr().err


def test_fastreal_teaches_with_its_state_and_heavily_degraded_clips_can_have_another_teacher(
    clips: Path, tmp_path: Path
) -> None:
    taught = shutil.copytree(clips, tmp_path / "clips")
    assert main(["teach", str(taught), "--teacher", "fastreal-x4", "--sees", "degraded"]) == 0
    pictures = np.load(taught / "00001" / "teacher-fastreal-x4.npy")
    clip = torch.from_numpy(np.load(taught / "00001" / "lr.npy")).permute(0, 3, 1, 2)[None] / 255
    network = load_fastreal(weights.verify("fastreal-x4")).network
    with torch.inference_mode():
        whole, cold = (
            network(part)[0, -1].clamp(0, 1).mul(255).permute(1, 2, 0).numpy() for part in (clip, clip[:, -1:])
        )
    # In bfloat16 where the processor has it: up to a few steps of 255 from fp32.
    assert np.abs(pictures[-1] - whole).mean() < min(1.5, np.abs(pictures[-1] - cold).mean())

    losses = {}
    for heavy_teacher in (TEACHER, "fastreal-x4"):
        run, teachers = tmp_path / heavy_teacher, ("--teacher", TEACHER, "--heavy-teacher", heavy_teacher)
        assert _distill(taught, run, *teachers, "--shares", "0", "0", "0", "1", "--batch", "4", "--steps", "1") == 0
        losses[heavy_teacher] = _first_losses(run)
    assert len({row["truth"] for row in losses.values()}) == 1
    assert len({row["teacher"] for row in losses.values()}) == 2


def test_a_second_teacher_is_mixed_into_what_is_learnt(clips: Path, tmp_path: Path) -> None:
    taught = shutil.copytree(clips, tmp_path / "clips")
    for clip in taught.iterdir():
        np.save(clip / "teacher-fastreal-x4.npy", np.load(clip / "gt.npy"))
    losses = []
    for share in ("0", "0.5", "1"):
        second = ("--second-teacher", "fastreal-x4", "--second-share", share, "--shares", "0.5", "0.5", "0.5", "0.5")
        assert _distill(taught, tmp_path / share, *second, "--steps", "1") == 0
        losses.append(_first_losses(tmp_path / share))
    # A teacher that is right: with it alone the teacher's loss is that of the truth.
    assert losses[2]["teacher"] == pytest.approx(losses[2]["truth"])
    assert losses[0]["teacher"] != pytest.approx(losses[2]["teacher"], rel=0.01)
    # The loss is nearly a distance, which is convex.
    assert losses[1]["teacher"] <= (losses[0]["teacher"] + losses[2]["teacher"]) / 2
    assert losses[1]["teacher"] != pytest.approx(losses[2]["teacher"], rel=0.01)


def test_shares_say_how_much_the_teacher_counts_in_each_family(clips: Path, tmp_path: Path) -> None:
    rows = []
    for number, shares in enumerate(("0 0 0 0", "1 0 0 0", "1 1 1 1")):
        assert _distill(clips, tmp_path / str(number), "--shares", *shares.split(), "--batch", "6") == 0
        rows.append(_first_losses(tmp_path / str(number)))
    truth, some, taught = rows
    assert truth["teacher"] == taught["truth"] == 0
    # A batch of six has clips of eq. 9 and others.
    assert 0 < some["teacher"] < taught["teacher"]
    assert 0 < some["truth"] < truth["truth"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--second-share", "1.5"), "--second-share 1.5 is not possible; allowed: 0 to 1"),
        (("--shares", "0.5", "0.5", "-0.5", "0.5"), "--shares -0.5 is not possible; allowed: 0 to 1"),
    ],
)
def test_impossible_shares_are_refused(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert _distill(clips, tmp_path / "run", *options) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


def test_clips_of_no_known_family_are_refused(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = shutil.copytree(clips, tmp_path / "clips")
    for path in plain.glob("*/clip.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"family": "second order"}))
    assert _distill(plain, tmp_path / "run") == 1
    assert "clips of the family 'second order'" in capsys.readouterr().err


def test_clean_clips_are_learnt_from_as_light_ones_are(clips: Path, tmp_path: Path) -> None:
    losses = {}
    for family in ("clean", "light", "heavy"):
        same = shutil.copytree(clips, tmp_path / family)
        for path in same.glob("*/clip.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"family": family}))
        assert _distill(same, tmp_path / f"run-{family}", "--shares", "0", "0", "0.3", "0.9") == 0
        losses[family] = _first_losses(tmp_path / f"run-{family}")
    assert [losses["clean"][name] for name in ("teacher", "truth")] == [
        losses["light"][name] for name in ("teacher", "truth")
    ]
    assert losses["clean"]["truth"] != pytest.approx(losses["heavy"]["truth"], rel=0.01)


def test_a_discriminator_takes_part_where_it_is_asked_for(clips: Path, tmp_path: Path) -> None:
    assert _distill(clips, tmp_path / "run", "--gan", "0.01", "--discriminator-channels", "4") == 0
    header = (tmp_path / "run" / "log.csv").read_text().splitlines()[0].split(",")
    assert {"gan", "discriminator"} <= set(header)


def test_clips_that_nobody_has_taught_are_refused(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert main(["distill", str(clips), str(clips), run, "--teacher", "realesrgan-x4plus", "--steps", "1"]) == 1
    assert "has no teacher-realesrgan-x4plus.npy" in capsys.readouterr().err
