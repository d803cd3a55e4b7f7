"""Metrics against values computed by hand or by the published code."""

import csv
import itertools
import math
import re
import subprocess
import sys
import weakref
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pycvvdp import cvvdp
from torch import Tensor
from typer.testing import CliRunner

from scripts.bench import peers
from scripts.bench.peers import Damage, degrade, open_truth, pictures, with_motion
from vsvsr.cli.evaluate import app
from vsvsr.errors import UserError
from vsvsr.evaluation import compare
from vsvsr.evaluation.compare import frame_scores, score, sheet, to_tensor
from vsvsr.evaluation.metrics import flicker, luma, psnr, round_to_8_bit, ssim
from vsvsr.evaluation.niqe import niqe
from vsvsr.evaluation.perceptual import jod
from vsvsr.models.fastreal.flow import LightFlow
from vsvsr.training.data.pictures import load_photograph
from vsvsr.weights import find

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


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small video: a pan over a picture of soft blobs."""
    folder = tmp_path_factory.mktemp("film")
    coarse = np.random.default_rng(0).integers(0, 256, (12, 20, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize((240, 144), Image.Resampling.BICUBIC).save(folder / "wide.png")
    pan = ["-i", str(folder / "wide.png"), "-vf", "loop=19:1,crop=164:100:2*n:8,format=yuv420p"]
    run_ffmpeg([*pan, "-c:v", "libx264", "-crf", "12", str(folder / "film.mkv")])
    return folder / "film.mkv"


def run_ffmpeg(arguments: list[str]) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments], check=True)


def run_peers(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> dict[str, dict[str, float]]:
    """Figures of the benchmark by case and quantity."""
    table = folder / "figures.csv"
    monkeypatch.setattr(sys, "argv", ["peers", *map(str, arguments), "--csv", str(table)])
    peers.main()
    found: dict[str, dict[str, float]] = {}
    with table.open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["case"], {})[row["quantity"]] = float(row["value"])
    return found


def test_peers_scores_every_method_in_every_case_and_their_means(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("bicubic", "realesr-animevideov3", "fastreal-compact-x4")
    cases = ("clean", "mild", "heavy")
    options = ("--first", 4, "--frames", 8, "--methods", *names, "--sheet", tmp_path / "sheets")
    found = run_peers(monkeypatch, tmp_path, film, *options, "--cases", *cases, "undegraded")
    assert set(found) == {f"film, {case}, {name}" for case in cases for name in names} | {
        f"mean, {name}" for name in names
    }
    clean, mild, heavy = (found[f"film, {case}, bicubic"] for case in cases)
    assert 50 > clean["PSNR-Y"] > mild["PSNR-Y"] > heavy["PSNR-Y"] > 15
    for name in names:
        scores = [found[f"film, {case}, {name}"]["JOD"] for case in cases]
        assert found[f"mean, {name}"]["JOD"] == pytest.approx(np.mean(scores), rel=1e-4)
    assert [found[f"mean, {name}"]["parameters"] for name in names] == [0, 621424, 147554]
    sizes = {path.stem: Image.open(path).size for path in (tmp_path / "sheets").iterdir()}
    # Three methods and the truth; what is enlarged undegraded has no truth, and is four times as large.
    assert sizes["film-mild"] == (4 * 164 - 4, 96 + 18)
    assert sizes["film-undegraded"] == (3 * 364 - 4, 270 + 18)


def test_peers_compares_with_a_twin_without_a_state_at_either_scale(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--scale", 2, "--twin", find("fastreal-compact-x2"), "--motion", "slow", "--cases", "mild")
    found = run_peers(monkeypatch, tmp_path, film, "--frames", 8, "--first", 0, *options)
    per_frame = {"realesr-animevideov3", "realesrgan-x4plus"}
    names = {"bicubic", "Lanczos", *per_frame, "fastreal-x2", "fastreal-compact-x2", "twin"}
    assert {case.split(", ")[-1] for case in found} == names
    # The same weights; one has a state, the twin none.
    own, twin = (found[f"film, mild, {name}"]["PSNR-Y"] for name in ("fastreal-compact-x2", "twin"))
    assert 0 < abs(own - twin) < 2


def test_a_slow_pan_moves_by_a_pixel_a_frame_and_a_still_clip_not_at_all(film: Path) -> None:
    truth = open_truth(film)
    still, slow = (list(pictures(with_motion(truth, motion, 8))) for motion in ("still", "slow"))
    assert len(still) == len(slow) == 8
    assert all(np.array_equal(frame, still[0]) for frame in still)
    assert all(np.array_equal(a[:, 1:], b[:, :-1]) for a, b in itertools.pairwise(slow))
    assert not np.array_equal(slow[0], slow[1])


def test_drift_is_written_for_a_moving_and_a_still_clip(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("bicubic", "fastreal-compact-x4")
    options = ("--frames", 12, "--downsampling", "bicubic", "--drift", tmp_path, "--methods", *names)
    found = run_peers(monkeypatch, tmp_path, film, *options)
    for motion in ("own", "slow", "still"):
        with (tmp_path / f"film-{motion}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [(row["clip"], row["frame"]) for row in rows] == [
            (name, str(frame)) for name in names for frame in range(12)
        ]
        values = [float(row["psnr_y"]) for row in rows]
        assert all(15 < value < 60 for value in values)
        first = found[f"film, {motion}, 12 frames, bicubic"]["PSNR-Y, first"]
        assert first == pytest.approx(np.mean(values[5:12]), abs=1e-3)


def test_the_degradation_of_peers_is_blur_noise_average_and_codec(film: Path, tmp_path: Path) -> None:
    truth = open_truth(film)[:3]
    assert (truth.width, truth.height) == (160, 96)
    small = degrade(truth, Damage(0.01, 0.0, 1), "area", tmp_path / "small.mkv", scale=4)
    averages = [frame.reshape(24, 4, 40, 4, 3).mean((1, 3)) for frame in pictures(truth)]
    # On luma, which the codec does not subsample.
    weights = np.array((0.2126, 0.7152, 0.0722))
    for frame, average in zip(pictures(small), averages, strict=True):
        assert np.abs((frame - average) @ weights).mean() < 1


def test_evaluate_writes_the_scores_of_every_frame(film: Path, tmp_path: Path) -> None:
    run_ffmpeg(["-i", str(film), "-c:v", "libx264", "-crf", "40", str(tmp_path / "coarse.mkv")])
    target = tmp_path / "frames.csv"
    arguments = [str(tmp_path / "coarse.mkv"), str(film), "--frames", "6", "--per-frame", str(target)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    with target.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["frame"] for row in rows] == [str(frame) for frame in range(6)]
    mean = np.mean([float(row["psnr_y"]) for row in rows])
    assert f"{mean:.2f}" in result.stdout
    assert all(row["niqe"] == "" for row in rows)


def test_a_black_frame_spoils_no_score(tmp_path: Path) -> None:
    frames = pixels(3, 200, 200, 3)
    frames[0] = 0
    given = off_by(frames, 1)
    given[0] = 0
    for name, each in (("given", given), ("truth", frames)):
        write_sequence(tmp_path / name, each)
    table = tmp_path / "frames.csv"
    (row,) = evaluated(tmp_path / "given", tmp_path / "truth", "--per-frame", table, "--perceptual")
    wanted = psnr(luma(to_tensor(given[1:])), luma(to_tensor(frames[1:]))).mean()
    assert float(row[1]) == pytest.approx(float(wanted), abs=0.01)
    assert float(row[6]) > 0.9  # edges
    assert math.isfinite(float(row[8]))  # NIQE
    with table.open() as file:
        niqes = [line["niqe"] for line in csv.DictReader(file)]
    assert niqes[0] == ""
    assert float(niqes[1]) > 0
    black = compare.EightBitClip(list(np.zeros((2, 200, 200, 3), np.uint8)))
    assert math.isnan(compare.mean_niqe(black))


def test_pictures_that_cannot_be_compared_are_one_line(film: Path, tmp_path: Path) -> None:
    write_sequence(tmp_path / "small", pixels(2, 10, 40, 3))
    write_sequence(tmp_path / "short", pixels(2, 64, 64, 3))
    write_sequence(tmp_path / "long", pixels(3, 256, 256, 3))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0\0\0\x0dIHDR" + b"\xff" * 40)
    for arguments, message in (
        (("small", "small"), "pictures of 40x10 cannot be compared; they need at least 11x11"),
        (
            ("long", "--source", "short"),
            f"{tmp_path / 'short'} has 2 frames, {tmp_path / 'long'} 3; they must be as many",
        ),
    ):
        given = [str(each) if each.startswith("-") else str(tmp_path / each) for each in arguments]
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            CliRunner().invoke(app, given, catch_exceptions=False)
    with pytest.raises(UserError, match=r"broken\.png is no picture that can be read"):
        load_photograph(tmp_path / "broken.png", (16, 16))


def test_scores_of_frames_without_a_truth_are_their_niqe() -> None:
    clip = noise(2, 3, 192, 192)
    rows = list(frame_scores(clip, None))
    assert [row[0] for row in rows] == [None, None]
    assert rows[1][1] == pytest.approx(niqe(luma(round_to_8_bit(clip[1:]))[0, 0]))


def evaluated(*arguments: object) -> list[list[str]]:
    """Rows of the table that ``vsvsr evaluate`` prints."""
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    return [line.split() for line in result.stdout.splitlines()[1:]]


def test_untagged_hd_is_the_same_film_as_the_same_samples_tagged(film: Path, tmp_path: Path) -> None:
    untagged, tagged = tmp_path / "untagged.mkv", tmp_path / "tagged.mkv"
    larger = ["-vf", "scale=1040:64,format=yuv420p", "-frames:v", "1"]
    run_ffmpeg(["-i", str(film), *larger, "-c:v", "libx264", "-qp", "0", str(untagged)])
    bt709 = "colour_primaries=1:transfer_characteristics=1:matrix_coefficients=1:video_full_range_flag=0"
    run_ffmpeg(["-i", str(untagged), "-c", "copy", "-bsf:v", f"h264_metadata={bt709}", str(tagged)])
    ((name, *scores),) = evaluated(untagged, tagged)
    assert (name, scores[:5]) == ("untagged", ["inf", "inf", "1.0000", "1.0000", "0.000"])


def test_a_portrait_film_is_judged_upright(film: Path, tmp_path: Path) -> None:
    portrait, upright = tmp_path / "portrait.mkv", tmp_path / "upright.mkv"
    run_ffmpeg(["-display_rotation:v:0", "90", "-i", str(film), "-c", "copy", str(portrait)])
    lossless = ["-c:v", "libx264", "-qp", "0"]
    run_ffmpeg(["-i", str(film), "-vf", "transpose=cclock", *lossless, str(upright)])
    ((_, psnr_y, *_),) = evaluated(portrait, upright, "--frames", 2)
    assert float(psnr_y) > 45  # chroma lies elsewhere, by half a sample


def test_folders_of_pictures_are_judged_like_films(film: Path, tmp_path: Path) -> None:
    folder = tmp_path / "000"
    folder.mkdir()
    run_ffmpeg(["-i", str(film), "-frames:v", "3", "-start_number", "0", str(folder / "%08d.png")])
    ((name, psnr_y, *_),) = evaluated(folder, film, "--frames", 3)
    assert name == "000"
    assert float(psnr_y) > 45


def test_the_truth_itself_looks_perfect_and_a_coarse_copy_does_not(film: Path, tmp_path: Path) -> None:
    run_ffmpeg(["-i", str(film), "-c:v", "libx264", "-crf", "45", str(tmp_path / "coarse.mkv")])
    ((*_, erqa, jod),) = evaluated(film, film, "--perceptual", "--frames", 3)
    assert (erqa, jod) == ("1.000", "10.00")
    ((*_, erqa, jod),) = evaluated(tmp_path / "coarse.mkv", film, "--perceptual", "--frames", 3)
    assert 0 < float(erqa) < 0.95
    assert 2 < float(jod) < 9.5
    with pytest.raises(UserError, match=r"^--perceptual compares with the truth; give it after the clip$"):
        CliRunner().invoke(app, [str(film), "--perceptual"], catch_exceptions=False)


def test_jod_is_what_the_package_gives_for_whole_clips_and_counts_flicker() -> None:
    truth = F.interpolate(noise(6, 3, 8, 12), scale_factor=8, mode="bicubic").clamp(0, 1)
    steady, unsteady = truth.clone(), truth.clone()
    steady += 0.04
    unsteady[::2] += 0.04
    unsteady[1::2] -= 0.04
    metric = cvvdp(display_name="standard_fhd", quiet=True, device=torch.device("cpu"))
    for clip in (steady, unsteady):
        shown = round_to_8_bit(clip), round_to_8_bit(truth)
        whole, _ = metric.predict(*shown, dim_order="FCHW", frames_per_second=25)
        assert jod(clip, truth) == pytest.approx(float(whole), abs=1e-4)
    assert jod(unsteady, truth) < jod(steady, truth)


def test_few_frames_are_held_at_a_time_however_long_the_clip_is(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, most = 0, 0

    def counted(frames: np.ndarray) -> Tensor:
        nonlocal alive, most
        tensor = to_tensor(frames)
        alive += len(tensor)
        most = max(most, alive)
        weakref.finalize(tensor, freed)
        return tensor

    def freed() -> None:
        nonlocal alive
        alive -= 1

    monkeypatch.setattr(compare, "to_tensor", counted)
    outputs = ["--per-frame", tmp_path / "frames.csv", "--sheet", tmp_path / "sheet.png"]
    rows = evaluated(film, film, "--source", film, "--frames", 7, *outputs)
    assert [row[0] for row in rows] == ["film", "bicubic", "Lanczos"]
    assert len((tmp_path / "frames.csv").read_text().splitlines()) == 1 + 3 * 7
    assert most <= 6


def write_sequence(folder: Path, frames: np.ndarray, name: str = "{:08d}.png", first: int = 0) -> None:
    """Numbered pictures of frames ``(t, h, w, 3)`` uint8."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, first):
        Image.fromarray(frame).save(folder / name.format(number))


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, 200, shape, dtype=np.uint8)


def off_by(frames: np.ndarray, *steps: int) -> np.ndarray:
    """Each frame off by so many steps in all colours."""
    return frames + np.array(steps, np.uint8)[:, None, None, None]


def psnr_of(*steps: float) -> float:
    return float(np.mean([20 * math.log10(255 / step) for step in steps]))


def test_reds4_is_judged_in_rgb_clip_by_clip_whatever_lies_beside_it(tmp_path: Path) -> None:
    truth, results = tmp_path / "train_sharp", tmp_path / "results"
    for seed, name in enumerate(("000", "011", "015", "020", "021")):
        frames = pixels(2, 16, 24, 3, seed=seed)
        write_sequence(truth / name, frames)
        write_sequence(results / name, off_by(frames, 1, 1 + seed))
    rows = evaluated(results, truth, "--protocol", "reds4")
    assert [row[0] for row in rows] == ["000", "011", "015", "020", "mean"]
    expected = [psnr_of(1, 1 + seed) for seed in range(4)]
    assert [float(row[1]) for row in rows[:4]] == pytest.approx(expected, abs=0.006)
    assert float(rows[4][-2]) == pytest.approx(np.mean(expected), abs=0.006)
    first = pixels(2, 16, 24, 3)
    values = [float(ssim(*(to_tensor(x[i : i + 1]) * 255 for x in (off_by(first, 1, 1), first)))) for i in (0, 1)]
    assert float(rows[0][2]) == pytest.approx(np.mean(values), abs=6e-5)


def test_vid4_is_judged_on_luma(tmp_path: Path) -> None:
    for name in ("calendar", "city", "foliage", "walk"):
        frames = pixels(2, 16, 24, 3)
        write_sequence(tmp_path / "truth" / name, frames)
        write_sequence(tmp_path / "results" / name, off_by(frames, 2, 2))
    rows = evaluated(tmp_path / "results", tmp_path / "truth", "--protocol", "vid4")
    # A step of grey is 219 / 255 of a step of luma.
    assert [float(row[-2]) for row in rows] == pytest.approx([psnr_of(2 * 219 / 255)] * 5, abs=0.006)


@pytest.mark.parametrize("frames", [7, 1])
def test_vimeo_is_judged_on_luma_of_the_middle_frames_of_the_listed_clips(tmp_path: Path, frames: int) -> None:
    listed = ("00001/0266", "00002/0001")
    for seed, name in enumerate((*listed, "00003/0001")):
        clip = pixels(7, 16, 24, 3, seed=seed)
        write_sequence(tmp_path / "vimeo/sequences" / name, clip, "im{}.png", 1)
        result = off_by(clip, 9, 9, 9, 1 + seed, 9, 9, 9) if frames == 7 else off_by(clip[3:4], 1 + seed)
        write_sequence(tmp_path / "results" / name, result, "im{}.png", 1)
    (tmp_path / "vimeo/sep_testlist.txt").write_text("\n".join(listed) + "\n")
    (row,) = evaluated(tmp_path / "results", tmp_path / "vimeo", "--protocol", "vimeo")
    assert row[:3] == ["mean", "of", "2"]
    assert float(row[3]) == pytest.approx(psnr_of(219 / 255, 2 * 219 / 255), abs=0.006)


def test_a_set_that_lacks_something_is_refused_in_one_line(tmp_path: Path) -> None:
    truth, results = tmp_path / "truth", tmp_path / "results"

    def refused(*arguments: object, protocol: str = "vid4") -> str:
        with pytest.raises(UserError) as caught:
            evaluated(results, truth, "--protocol", protocol, *arguments)
        return str(caught.value)

    for name in ("calendar", "city", "foliage", "walk"):
        write_sequence(truth / name, pixels(2, 16, 16, 3))
        write_sequence(results / name, pixels(2, 16, 16, 3))
    assert refused(protocol="vimeo") == (
        f"{truth} holds no sep_testlist.txt; give the folder of Vimeo-90K (vimeo_septuplet)"
    )
    (truth / "sep_testlist.txt").write_text("../secret\n")
    assert refused(protocol="vimeo").endswith("lists ../secret, which is no clip of Vimeo-90K")
    assert refused("--perceptual") == "--protocol judges whole sets; it goes with no other option"
    (results / "city/00000001.png").unlink()
    assert refused() == f"{results / 'city'} holds 1 pictures, {truth / 'city'} 2; they must be as many"
    write_sequence(results / "city", pixels(2, 16, 20, 3))
    assert refused() == "a picture of 20x16 cannot be compared with a truth of 16x16; both must be alike"
    (results / "city/00000001.png").write_bytes(b"no picture")
    write_sequence(results / "city", pixels(1, 16, 16, 3))
    assert refused() == f"{results / 'city/00000001.png'} is no picture that can be read"
    for picture in (results / "city").iterdir():
        picture.unlink()
    (results / "city").rmdir()
    assert refused() == f"{results / 'city'} is missing; a folder of pictures for each of 4 clips is expected"
    with pytest.raises(UserError, match=r"^--protocol compares with the truth; give it after the clips$"):
        evaluated(results, "--protocol", "vid4")
