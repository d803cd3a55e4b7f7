"""Training data and the stage-1 loop on tiny clips."""

import argparse
import csv
import dataclasses
import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from vsvsr.errors import UserError
from vsvsr.models.fastreal import COMPACT, FastRealConfig, FastRealVSR
from vsvsr.models.fastreal import load as load_fastreal
from vsvsr.models.fastreal import save as save_fastreal
from vsvsr.ops import flow_warp
from vsvsr.training.__main__ import main
from vsvsr.training.data.build import DatasetConfig, build_dataset
from vsvsr.training.data.clips import Clips, Crops, write_flows
from vsvsr.training.data.degradation import Degradation, blur, blur_kernel, degrade, downsample, noise_field, shrink
from vsvsr.training.data.motion import synthetic_clip
from vsvsr.training.data.pictures import find_sources
from vsvsr.training.discriminator import Adversary, UNetDiscriminator, check_crop
from vsvsr.training.harness import Optimiser, Processes, RunFolder, Schedule, train
from vsvsr.training.losses import Perceptual, charbonnier, psnr_loss
from vsvsr.training.recipes import fastreal, fastreal_gan
from vsvsr.training.recurrent import Chunk, RecurrentTraining, open_clips, unroll, with_first_flow
from vsvsr.training.settings import add_options, read_options
from vsvsr.video.ffmpeg import Codec, Deinterlacer, through_codec, through_fields
from vsvsr.video.source import Pictures, open_video

DEINTERLACERS: tuple[Deinterlacer, ...] = ("bwdif", "yadif")
TINY = dataclasses.replace(COMPACT, channels=8, rb2_blocks=1, key_channels=4)
DATA = DatasetConfig(clips=2, frames=6, size=(96, 128), seed=3)


def photograph(seed: int) -> np.ndarray:
    """Smooth colours with edges: something that flow and blur can act on."""
    coarse = np.random.default_rng(seed).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((480, 400), Image.Resampling.BICUBIC))


def test_training_without_its_packages_is_one_line() -> None:
    program = "import sys; sys.modules['accelerate'] = None; from vsvsr.training.__main__ import main; sys.exit(main())"
    ended = subprocess.run([sys.executable, "-c", program, "build", "--help"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == 'error: training needs accelerate; run: pip install "vsvsr[cli,train]"\n'


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(2):
        Image.fromarray(photograph(seed)).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def data(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "clips"
    build_dataset(sources, folder, DATA)
    return folder


ALONE = Processes(torch.device("cpu"))


@pytest.fixture(scope="module")
def crops(data: Path) -> Crops:
    network = FastRealVSR(TINY)
    return Crops(Clips(data, scale=4, flow=write_flows(data, network)), frames=5, crop=16)


def settings(data: Path, folder: Path, **values: Any) -> fastreal.Settings:
    return fastreal.Settings(
        **{"data": data, "validation": data, "run": folder, "crop": 16, "frames": 6, "batch": 1, "chunk": 3, **values}
    )


def recipe(given: fastreal.Settings, processes: Processes = ALONE, config: FastRealConfig = TINY) -> RecurrentTraining:
    torch.manual_seed(0)
    network = FastRealVSR(config)
    training, validation = open_clips(network, given, processes)
    return RecurrentTraining(
        network,
        given,
        lambda chunk: fastreal.losses(chunk, given),
        training=training,
        validation=validation,
        processes=processes,
    )


def trained(given: fastreal.Settings) -> RecurrentTraining:
    """A recipe after its run."""
    result = recipe(given)
    train(result, given, steps=given.steps, processes=ALONE)
    return result


def test_the_same_seed_builds_the_same_clips_to_the_byte(sources: Path, data: Path, tmp_path: Path) -> None:
    build_dataset(sources, tmp_path, DATA)
    for name in ("00000/gt.npy", "00001/lr.npy", "00001/motion.npy", "00000/clip.json"):
        assert (tmp_path / name).read_bytes() == (data / name).read_bytes()


def test_an_interrupted_build_carries_on_to_the_same_clips(sources: Path, data: Path, tmp_path: Path) -> None:
    build_dataset(sources, tmp_path, dataclasses.replace(DATA, clips=1))
    first = (tmp_path / "00000/lr.npy").stat().st_mtime_ns
    build_dataset(sources, tmp_path, DATA)
    assert (tmp_path / "00000/lr.npy").stat().st_mtime_ns == first
    assert (tmp_path / "00001/lr.npy").read_bytes() == (data / "00001/lr.npy").read_bytes()


def test_clips_are_cut_from_real_videos(sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    pan = ["-i", str(sources / "0.png"), "-vf", "loop=239:1,crop=200:160:n:0,format=yuv420p"]
    run_ffmpeg([*pan, "-c:v", "libx264", "-preset", "ultrafast", str(folder / "pan.mkv")])
    build_dataset(folder, tmp_path / "data", dataclasses.replace(DATA, clips=1))
    truth = np.load(tmp_path / "data/00000/gt.npy")
    assert not (tmp_path / "data/00000/motion.npy").exists()
    video = np.stack(list(Pictures(open_video(folder / "pan.mkv").clip)))
    pieces = np.lib.stride_tricks.sliding_window_view(video[..., 0], (6, 96, 128))[..., ::24, ::32]
    assert (pieces == truth[:, ::24, ::32, 0]).all((-3, -2, -1)).sum() == 1


def test_folders_of_numbered_pictures_are_cut_as_videos_are(sources: Path, tmp_path: Path) -> None:
    wide = np.asarray(Image.open(sources / "0.png"))
    folder = tmp_path / "sequences/000"
    folder.mkdir(parents=True)
    for i in range(8):
        Image.fromarray(wide[:160, 8 * i : 8 * i + 200]).save(folder / f"{i:08d}.png")
    build_dataset(tmp_path / "sequences", tmp_path / "data", dataclasses.replace(DATA, clips=2))
    for clip in ("00000", "00001"):
        truth = np.load(tmp_path / "data" / clip / "gt.npy")
        assert not (tmp_path / "data" / clip / "motion.npy").exists()
        # Six frames of eight, each eight pixels further.
        pieces = np.lib.stride_tricks.sliding_window_view(wide, (96, 128, 3))[:, :, 0, ::24, ::32]
        places = [np.argwhere((pieces == frame[::24, ::32]).all((-3, -2, -1))) for frame in truth]
        assert [len(place) for place in places] == [1] * 6
        assert np.diff(np.concatenate(places), axis=0).tolist() == [[0, 8]] * 5


def test_photographs_of_several_sizes_or_with_gaps_in_their_numbers_are_no_sequence(tmp_path: Path) -> None:
    sizes = {"a": [(20, 30)] * 7, "b": [(20, 30)] * 6 + [(30, 20)], "c": [(20, 30)] * 7, "d": [(20, 30)] * 6}
    for name, group in sizes.items():
        (tmp_path / name).mkdir()
        for i, size in enumerate(group):
            number = i + (name == "c" and i > 3)
            Image.new("RGB", size).save(tmp_path / name / f"im{number}.png")
    photographs, videos = find_sources(tmp_path)
    assert videos == [tmp_path / "a"]
    assert {path.parent.name for path in photographs} == {"b", "c", "d"}
    assert len(photographs) == 20


def test_a_video_that_is_too_short_is_refused_by_name(sources: Path, tmp_path: Path) -> None:
    run_ffmpeg(["-loop", "1", "-i", str(sources / "0.png"), "-frames:v", "3", str(tmp_path / "short.mp4")])
    with pytest.raises(UserError, match="shorter or smaller than a training clip; remove it"):
        build_dataset(tmp_path, tmp_path / "data", DATA)


def test_the_psnr_loss_is_a_five_hundredth_of_the_mean_psnr_of_the_clips() -> None:
    truth = torch.rand(2, 3, 3, 16, 16)
    prediction = truth + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1, 1)
    assert float(psnr_loss(prediction, truth)) == pytest.approx(-(20 + 40) / 2 / 500, abs=1e-4)


def test_cameras_are_of_every_softness() -> None:
    # The share of a clip's energy that is in its finest detail.
    fine = []
    for seed in range(24):
        clip = synthetic_clip([photograph(0)], np.random.default_rng(seed), frames=3, size=(64, 96), scale=4)
        frame = clip.frames[0].astype(np.float64).mean(2)
        fine.append(np.square(np.diff(frame, 2)).mean() / frame.var())
    assert max(fine) > 50 * min(fine)


def test_synthetic_clips_hold_still_shots_pans_and_cuts() -> None:
    still = moving = cuts = 0
    for seed in range(40):
        clip = synthetic_clip([photograph(0)], np.random.default_rng(seed), frames=14, size=(48, 64), scale=4)
        change = np.abs(np.diff(clip.frames.astype(int), axis=0)).mean((1, 2, 3))
        motion = np.abs(clip.flow.astype(float)).mean((1, 2, 3))
        still += int(change.max() == 0)
        moving += int(np.median(motion) > 0.3)
        cuts += int(np.sort(change)[-1] > 2 * max(np.sort(change)[-2], 0.5) and motion[change.argmax()] == 0)
    assert still >= 2
    assert moving >= 10
    assert cuts >= 1


def test_prior_processing_changes_the_degraded_clip_and_nothing_else(sources: Path, data: Path, tmp_path: Path) -> None:
    build_dataset(sources, tmp_path, dataclasses.replace(DATA, interlaced_share=1.0, recompressed_share=1.0))
    for clip in ("00000", "00001"):
        assert (tmp_path / clip / "gt.npy").read_bytes() == (data / clip / "gt.npy").read_bytes()
        before, after = np.load(data / clip / "lr.npy").astype(int), np.load(tmp_path / clip / "lr.npy").astype(int)
        assert before.shape == after.shape
        assert 0.5 < np.abs(before - after).mean() < 20
        settings = json.loads((tmp_path / clip / "clip.json").read_text())
        assert settings.pop("deinterlacer") in ("bwdif", "yadif")
        assert settings.pop("prior_compression")[0] in ("mpeg2video", "libx264")
        assert settings == json.loads((data / clip / "clip.json").read_text())


@pytest.mark.parametrize(
    ("share", "family", "ranges"),
    [
        ("noisy_share", "noisy capture", {"noise": (8, 30), "crf": (8, 24), "blur": (0.2, 1.2)}),
        ("heavy_share", "heavy", {"noise": (2, 5), "crf": (28, 35), "blur": (1.8, 3.0)}),
    ],
)
def test_a_share_of_another_family_leaves_the_truth_and_the_other_clips_as_they_were(
    sources: Path, data: Path, tmp_path: Path, share: str, family: str, ranges: dict[str, tuple[float, float]]
) -> None:
    more = dataclasses.replace(DATA, clips=6, frames=2)
    build_dataset(sources, tmp_path / "none", more)
    build_dataset(sources, tmp_path / "some", dataclasses.replace(more, **{share: 0.33}))
    others = 0
    for index in range(6):
        before, after = (tmp_path / folder / f"{index:05d}" for folder in ("none", "some"))
        assert (before / "gt.npy").read_bytes() == (after / "gt.npy").read_bytes()
        settings = json.loads((after / "clip.json").read_text())
        if settings["family"] == "eq. 9":
            assert (before / "lr.npy").read_bytes() == (after / "lr.npy").read_bytes()
            assert settings == json.loads((before / "clip.json").read_text())
            continue
        others += 1
        assert settings["family"] == family
        settings["blur"] = max(settings["sigma"])
        assert all(low <= settings[name] <= high for name, (low, high) in ranges.items())
        assert settings["sigma"][0] == settings["sigma"][1]
        assert (before / "lr.npy").read_bytes() != (after / "lr.npy").read_bytes()
    assert 1 <= others <= 4


def test_a_soft_truth_is_a_blurred_one_and_what_is_degraded(sources: Path, tmp_path: Path) -> None:
    sharp = dataclasses.replace(DATA, clips=6, frames=2, clean=True)
    build_dataset(sources, tmp_path / "sharp", sharp)
    build_dataset(sources, tmp_path / "soft", dataclasses.replace(sharp, soft_share=0.5))
    softened = 0
    for index in range(6):
        before, after = (tmp_path / folder / f"{index:05d}" for folder in ("sharp", "soft"))
        sigma = json.loads((after / "clip.json").read_text()).get("softness")
        truth, expected = np.load(after / "gt.npy"), np.load(before / "gt.npy").astype(float)
        if sigma is not None:
            softened += 1
            assert 1 <= sigma <= 4
            expected = gaussian_filter(expected, (0, sigma, sigma, 0), mode="nearest", radius=10)
        assert np.abs(truth - expected).max() <= 1
        assert np.array_equal(np.load(after / "lr.npy"), shrink(truth, scale=4))
    assert 1 <= softened <= 5


def test_noise_has_the_strength_the_grain_and_the_slope_that_were_drawn() -> None:
    image = torch.cat((torch.full((3, 96, 128), 32.0), torch.full((3, 96, 128), 223.0)), dim=2)

    def field(grain: float = 0.0, slope: float = 0.0) -> Tensor:
        parameters = Degradation(sigma=(0.2, 0.2), noise=20.0, grain=grain, noise_slope=slope, crf=10)
        return noise_field(parameters, image, torch.Generator().manual_seed(0))

    for grain, correlation in ((0.0, 0.0), (1.5, float(np.exp(-1 / (4 * 1.5**2))))):
        noise = field(grain)
        assert float(noise.std()) == pytest.approx(20, rel=0.05)
        neighbours = torch.corrcoef(torch.stack((noise[..., 1:].flatten(), noise[..., :-1].flatten())))[0, 1]
        assert float(neighbours) == pytest.approx(correlation, abs=0.03)
    for slope in (-0.5, 0.5):
        dark, bright = field(slope=slope).split(128, dim=2)
        assert float(dark.std()) == pytest.approx(20 * (1 + slope * (32 / 127.5 - 1)), rel=0.05)
        assert float(bright.std()) == pytest.approx(20 * (1 + slope * (223 / 127.5 - 1)), rel=0.05)


def test_half_the_scale_takes_half_the_grain_too() -> None:
    grains = []
    for seed in range(20):
        x4, x2 = (Degradation.draw_noisy(np.random.default_rng(seed), scale=scale) for scale in (4, 2))
        assert (2 * x2.noise, 2 * x2.grain, 2 * x2.sigma[0]) == pytest.approx((x4.noise, x4.grain, x4.sigma[0]))
        assert (x2.crf, x2.noise_slope, x2.resize) == (x4.crf, x4.noise_slope, x4.resize)
        grains.append(x4.grain)
    assert 5 <= sum(grain > 0 for grain in grains) <= 15


def test_deinterlacing_keeps_what_stands_still_and_guesses_every_other_line_of_what_moves() -> None:
    wide = np.asarray(Image.fromarray(photograph(0)).resize((240, 96), Image.Resampling.BICUBIC))
    still = np.stack([wide[:, :128]] * 6)
    moving = np.stack([wide[:, 8 * i : 8 * i + 128] for i in range(6)])
    luma = np.array((0.299, 0.587, 0.114))
    for deinterlacer in DEINTERLACERS:
        errors = []
        for clip in (still, moving):
            result = through_fields(clip, "ffv1", 0, deinterlacer=deinterlacer) @ luma
            plain = through_codec(clip, "ffv1", 0) @ luma
            assert result.shape == clip.shape[:3]
            # On luma: chroma is halved within the fields. A frame for each field, at the time of the field.
            distance = [[np.abs(frame - other).mean() for other in plain] for frame in result[1:-1]]
            if clip is moving:
                assert np.argmin(distance, axis=1).tolist() == [1, 2, 3, 4]
            errors.append(np.abs(result - plain)[2:-2].mean())
        assert errors[0] < 0.4
        assert errors[1] > 1.0


def test_an_odd_number_of_frames_survives_interlacing() -> None:
    clip = np.stack([photograph(1)[:64, :96]] * 5)
    assert through_fields(clip, "mpeg2video", 4, deinterlacer="bwdif").shape == clip.shape


@pytest.mark.parametrize("codec", ["mpeg2video", "libx264"])
def test_a_coarser_first_compression_loses_more(codec: Codec) -> None:
    clip = np.stack([photograph(1)[:64, :96]] * 3)
    fine, coarse = (np.abs(through_codec(clip, codec, q).astype(int) - clip).mean() for q in (2, 30))
    assert fine < coarse


def run_ffmpeg(arguments: list[str]) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments], check=True)


def test_settings_of_a_build_that_are_not_possible_are_refused_in_one_line(
    sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, message in (
        (["--size", "100", "128"], "--size 100 128 is not possible; allowed: multiples of 16"),
        (["--size", "96", "128", "--noisy-share", "33"], "--noisy-share 33.0 is not possible; allowed: 0 to 1"),
        (
            ["--noisy-share", "0.6", "--light-share", "0.3", "--heavy-share", "0.2"],
            "--noisy-share, --light-share and --heavy-share are more than 1 together",
        ),
    ):
        assert main(["build", str(sources), str(tmp_path / "clips"), *options]) == 1
        assert capsys.readouterr().err == f"error: {message}\n"
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs/broken.jpg").write_bytes(b"no picture")
    assert main(["build", str(tmp_path / "photographs"), str(tmp_path / "clips")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/photographs/broken.jpg is no picture that can be read\n"


def test_a_folder_without_pictures_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pictures or videos below"):
        build_dataset(tmp_path, tmp_path / "out", DATA)


def test_the_recorded_flow_leads_each_frame_back_to_the_one_before() -> None:
    checked = 0
    for seed in range(12):
        clip = synthetic_clip([photograph(0)], np.random.default_rng(seed), frames=6, size=(96, 128), scale=4)
        frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float()
        small = downsample(frames, 4, "area")
        flow = torch.from_numpy(clip.flow).float()
        if float(flow.abs().mean()) < 0.3:
            continue
        inner = (..., slice(6, -6), slice(6, -6))
        still = (small[1:] - small[:-1])[inner].abs().mean()
        moved = (small[1:] - flow_warp(small[:-1], flow, padding="border"))[inner].abs().mean()
        assert float(moved) < 0.5 * float(still)
        checked += 1
    assert checked >= 3


def test_the_blur_is_the_convolution_with_its_kernel() -> None:
    image = torch.rand(1, 40, 48, generator=torch.Generator().manual_seed(0))
    kernel = blur_kernel((2.0, 0.7), 0.4)
    padded = torch.nn.functional.pad(image[None], (10, 10, 10, 10), mode="replicate")
    # The kernel is symmetric about its centre, so correlation and convolution are one.
    expected = torch.nn.functional.conv2d(padded, kernel.float()[None, None])[0]
    torch.testing.assert_close(blur(image, kernel), expected, rtol=0, atol=2e-4)


def test_more_noise_and_a_coarser_codec_lie_further_from_the_truth() -> None:
    clip = synthetic_clip([photograph(1)], np.random.default_rng(0), frames=4, size=(96, 128), scale=4)
    clean = downsample(torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float(), 4, "bicubic")
    errors = []
    for noise, crf in ((0.0, 10), (5.0, 18), (5.0, 40)):
        result = degrade(clip.frames, Degradation(sigma=(0.2, 0.2), noise=noise, crf=crf), scale=4, seed=0)
        assert result.shape == (4, 24, 32, 3)
        errors.append(float((torch.from_numpy(result).permute(0, 3, 1, 2) - clean).square().mean()))
    assert errors[0] < errors[1] < errors[2]


def test_a_batch_holds_the_truth_of_its_frames(crops: Crops) -> None:
    batch = crops.batch(np.random.default_rng(0), 3)
    assert (batch.frames.shape, batch.truth.shape) == ((3, 5, 3, 16, 16), (3, 5, 3, 64, 64))
    assert batch.flows.shape == (3, 4, 2, 16, 16)
    small = torch.nn.functional.avg_pool2d(batch.truth.flatten(0, 1), 4).view_as(batch.frames)
    elsewhere = small.roll(4, dims=-1)
    assert float((small - batch.frames).abs().mean()) < 0.5 * float((elsewhere - batch.frames).abs().mean())


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    whole = trained(settings(data, tmp_path / "whole", steps=4, warmup=2))
    broken = settings(data, tmp_path / "broken", steps=4, warmup=2, save_minutes=0.0)
    with pytest.raises(KeyboardInterrupt):
        train(interrupted(recipe(broken), 2), broken, steps=4, processes=ALONE)
    resumed = recipe(broken)
    seen = recorded_steps(resumed)
    train(resumed, dataclasses.replace(broken, save_minutes=5.0), steps=4, processes=ALONE)
    assert seen == [2, 3]
    for name, value in whole.averaged.network.state_dict().items():
        assert torch.equal(resumed.averaged.network.state_dict()[name], value), name


def interrupted(target: RecurrentTraining, step: int) -> RecurrentTraining:
    """The recipe, stopped by the user at the beginning of ``step``."""
    original = target.step

    def stop(number: int) -> dict[str, float]:
        if number == step:
            raise KeyboardInterrupt
        return original(number)

    target.step = stop  # type: ignore[method-assign]
    return target


def recorded_steps(target: RecurrentTraining) -> list[int]:
    """The steps that the recipe is asked for from now on."""
    original, seen = target.step, list[int]()

    def record(number: int) -> dict[str, float]:
        seen.append(number)
        return original(number)

    target.step = record  # type: ignore[method-assign]
    return seen


def test_a_folder_of_another_training_is_refused_and_left_as_it_is(data: Path, tmp_path: Path) -> None:
    def refused(other: RecurrentTraining, steps: int) -> None:
        before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
        with pytest.raises(UserError, match=r"holds another training, or another version's; give another run folder"):
            train(other, other.settings, steps=steps, processes=ALONE)
        assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before

    plain, opposed = settings(data, tmp_path / "plain", steps=1), tmp_path / "opposed"
    trained(plain)
    train(adversarial(data, opposed)[0], adversarial(data, opposed)[0].settings, steps=1, processes=ALONE)
    refused(adversarial(data, tmp_path / "plain")[0], 2)
    refused(recipe(dataclasses.replace(plain, run=opposed)), 1)
    refused(recipe(plain, config=dataclasses.replace(TINY, hsa="none")), 2)
    # Found only when there is a row to log, and still before anything is written over.
    other = recipe(dataclasses.replace(plain, temporal_consistency=0.5, steps=2))
    before = (plain.run / "checkpoint.pt").read_bytes()
    with pytest.raises(UserError, match=r"log\.csv has no column temporal_consistency; give another run folder"):
        train(other, other.settings, steps=2, processes=ALONE)
    assert (plain.run / "checkpoint.pt").read_bytes() == before
    for damaged in (b"", b"no checkpoint", before[:1000]):
        (plain.run / "checkpoint.pt").write_bytes(damaged)
        with pytest.raises(UserError, match=r"checkpoint\.pt is damaged; remove it to begin again"):
            train(recipe(plain), plain, steps=2, processes=ALONE)


def test_settings_of_a_training_that_are_not_possible_are_refused_in_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"^--chunk 0 is not possible; allowed: 1 or more$"):
        recipe(settings(data, tmp_path / "run", steps=1, chunk=0))
    flow = ["light_flow", str(data), str(data), str(tmp_path / "flow"), "--crop", "24", "--steps", "1"]
    assert main(flow) == 1
    assert capsys.readouterr().err == "error: --crop 24 is not possible; allowed: multiples of 16\n"
    folders = [str(data), str(data), str(tmp_path / "run")]
    for command, option, value, allowed in (
        ("fastreal", "--batch", "0", "1 or more"),
        ("fastreal", "--seed", "-1", "0 or more"),
        ("fastreal", "--frames", "0", "1 or more"),
        ("fastreal", "--learning-rate", "nan", "0 or more"),
        ("light_flow", "--frames", "1", "2 or more"),
        ("ultra", "--frames", "1", "2 or more"),
        ("ultra", "--validation-crops", "0", "1 or more"),
        ("build", "--frames", "0", "1 or more"),
        ("build", "--seed", "-1", "0 or more"),
    ):
        given = folders[:2] if command == "build" else [*folders, "--steps", "1"]
        assert main([command, *given, option, value]) == 1
        assert capsys.readouterr().err == f"error: {option} {value} is not possible; allowed: {allowed}\n"
    checkpoint = ("--checkpoint", "BasicVSR_REDS4")
    assert main(["skip_estimators", str(data), str(tmp_path / "nowhere" / "x.safetensors"), *checkpoint]) == 1
    assert "there is no folder" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--crop 15 is not possible; allowed with a discriminator: multiples of 2"):
        check_crop(15, 4)
    assert not (tmp_path / "run").exists()


def test_no_warmup_is_the_whole_learning_rate_from_the_first_update_on() -> None:
    assert Schedule(steps=10, warmup=0).share(0) == Schedule(steps=10, warmup=1).share(0) == 1.0


@pytest.mark.parametrize("bf16", [False, True])
def test_the_loss_falls_and_the_flow_stays_as_it_was(data: Path, tmp_path: Path, bf16: bool) -> None:
    given = settings(data, tmp_path, steps=25, batch=2, chunk=6, warmup=5, learning_rate=3e-3, bf16=bf16)
    tiny = recipe(given)
    flow = {name: value.clone() for name, value in tiny.network.flow_estimator.state_dict().items()}
    losses = [tiny.step(step)["loss"] for step in range(given.steps)]
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:4])
    assert all(torch.equal(flow[name], value) for name, value in tiny.network.flow_estimator.state_dict().items())


def test_a_run_leaves_weights_a_log_and_sample_pictures(data: Path, tmp_path: Path) -> None:
    trained(settings(data, tmp_path, steps=2, chunk=6, save_minutes=0.0))
    assert load_fastreal(tmp_path / "best.safetensors").network.config == TINY
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:6] == ["step", "seconds", "loss", "psnr", "lr_pixels_per_second", "learning_rate"]
    assert [row["step"] for row in rows] == ["1", "2"]
    assert float(rows[0]["learning_rate"]) == pytest.approx(1e-3 / 200)
    assert all(float(row["lr_pixels_per_second"]) > 0 for row in rows)
    with Image.open(tmp_path / "samples/0000002.png") as picture:
        # Bicubic, result and truth of two clips of 128x96.
        assert picture.size == (3 * 132 - 4, 2 * 100 - 4 + 18)


def test_the_loss_on_flicker_is_for_errors_that_come_and_go_and_not_for_those_that_move_along(
    data: Path, tmp_path: Path
) -> None:
    truth = torch.rand(1, 4, 3, 64, 64)
    flows = torch.zeros(1, 4, 2, 16, 16)
    flows[:, :, 0] = 1  # low-resolution pixels to the right, in the frame before
    pattern = 0.1 * torch.rand(1, 3, 64, 80)
    moving = torch.stack([pattern[..., 4 * i : 4 * i + 64] for i in range(4)], dim=1)
    standing = pattern[:, None, ..., :64].expand(1, 4, 3, 64, 64)

    def losses(error: Tensor, weight: float = 2.0) -> dict[str, Tensor]:
        chunk = Chunk(pictures=truth + error, truth=truth, flows=flows, targets={}, families=())
        return fastreal.losses(chunk, settings(data, tmp_path, steps=1, temporal_consistency=weight))

    along, against, twice = (float(losses(error)["temporal_consistency"]) for error in (moving, standing, 2 * standing))
    assert along < 0.4 * against
    assert twice == pytest.approx(2 * against, rel=0.01)
    assert list(losses(moving, 0.0)) == ["pixel"]


@pytest.mark.parametrize("stateless", [False, True])
def test_checkpointing_gives_the_gradients_of_plain_training(crops: Crops, stateless: bool) -> None:
    torch.manual_seed(0)
    network = FastRealVSR(TINY)
    batch = with_first_flow(crops.batch(np.random.default_rng(0), 2))
    results = []
    for checkpointing in (False, True):
        network.zero_grad()
        pictures, hidden = unroll(
            network, batch.frames, batch.flows, hidden=None, stateless=stateless, checkpointing=checkpointing
        )
        charbonnier(pictures, batch.truth).backward()
        gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        results.append((pictures, hidden, *gradients))
    assert len(results[0]) > 10
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)


def test_several_processes_train_like_one(data: Path, tmp_path: Path) -> None:
    one = settings(data, tmp_path / "one", steps=2, batch=2)
    save_fastreal(recipe(one).network, tmp_path / "start.safetensors", {})
    averaged = trained(one).averaged.network
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    options = ["--steps", "2", "--batch", "2", "--frames", "6", "--chunk", "3", "--crop", "16"]
    paths = [str(data), str(data), str(tmp_path / "two"), "--start", str(tmp_path / "start.safetensors")]
    # The environment that `accelerate launch --cpu --num_processes 2` makes.
    several = {"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **address}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "vsvsr.training", "fastreal", *paths, *options],
            env={**os.environ, **several, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    weights = load_fastreal(tmp_path / "two/last.safetensors").network.state_dict()
    for name, value in averaged.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6, msg=name)


def test_a_batch_that_cannot_be_shared_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a batch of 3 cannot be shared by 2 processes"):
        recipe(settings(data, tmp_path, steps=1, batch=3), Processes(torch.device("cpu"), index=1, count=2))


def test_parts_of_a_batch_are_the_batch(crops: Crops) -> None:
    whole = crops.batch(np.random.default_rng(1), 4)
    for i in range(2):
        part = crops.batch(np.random.default_rng(1), 4, index=i, count=2)
        for name in ("frames", "truth", "flows"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[i::2])


def adversarial(data: Path, folder: Path, **values: Any) -> tuple[RecurrentTraining, Adversary]:
    torch.manual_seed(0)
    network = FastRealVSR(TINY)
    options = {"data": data, "validation": data, "run": folder, "steps": 4, "batch": 1, "frames": 6, "chunk": 3}
    options |= {"crop": 16, "warmup": 2, "start": Path(), "discriminator_channels": 4, "discriminator_rate": 2e-3}
    given = fastreal_gan.Settings(**{**options, **values})
    training, validation = open_clips(network, given, ALONE)
    result = fastreal_gan.recipe(network, given, training=training, validation=validation, processes=ALONE)
    assert isinstance(result.opponent, Adversary)
    return result, result.opponent


def test_a_resumed_adversarial_run_ends_with_the_weights_of_an_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    whole, opponent = adversarial(data, tmp_path / "whole")
    train(whole, whole.settings, steps=4, processes=ALONE)
    broken, _ = adversarial(data, tmp_path / "broken", save_minutes=0.0)
    with pytest.raises(KeyboardInterrupt):
        train(interrupted(broken, 2), broken.settings, steps=4, processes=ALONE)
    resumed, again = adversarial(data, tmp_path / "broken")
    train(resumed, resumed.settings, steps=4, processes=ALONE)
    pairs = ((whole.averaged.network, resumed.averaged.network), (opponent.discriminator, again.discriminator))
    for module, other in pairs:
        for name, value in module.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name
    assert not (tmp_path / "whole/best.safetensors").exists()
    header = (tmp_path / "whole/log.csv").read_text().splitlines()[0]
    assert header.endswith("learning_rate,pixel,gan,discriminator")


def test_the_discriminator_learns_to_tell_pictures_from_truth(data: Path, tmp_path: Path) -> None:
    training, adversary = adversarial(data, tmp_path)
    batch = next(training.stretches(0))
    real = Chunk(pictures=batch.truth, truth=batch.truth, flows=batch.flows, targets={}, families=())
    made = dataclasses.replace(real, pictures=batch.truth + 0.2 * torch.randn(batch.truth.shape))
    losses = [adversary.train(made)["discriminator"] for _ in range(40)]
    assert losses[0] == pytest.approx(2 * np.log(2), abs=0.3)
    assert losses[-1] < 0.7 * losses[0]
    assert float(training.losses(made)["gan"]) > float(training.losses(real)["gan"])
    assert all(parameter.requires_grad for parameter in adversary.discriminator.parameters())


def test_the_adversarial_loss_reaches_the_network_and_not_the_discriminator(data: Path, tmp_path: Path) -> None:
    training, adversary = adversarial(data, tmp_path)
    chunk = next(training.stretches(0))
    pictures = (chunk.truth * 0.5).requires_grad_()
    training.losses(Chunk(pictures=pictures, truth=chunk.truth, flows=chunk.flows, targets={}, families=()))[
        "gan"
    ].backward()
    assert pictures.grad is not None
    assert float(pictures.grad.abs().max()) > 0
    assert all(parameter.grad is None for parameter in adversary.discriminator.parameters())


def test_the_discriminator_has_the_layers_and_the_spectral_norm_of_the_paper() -> None:
    discriminator = UNetDiscriminator()
    shapes = [
        (module.in_channels, module.out_channels, module.stride[0], is_parametrized(module))
        for module in discriminator.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    assert sorted(shapes) == sorted(
        [
            (3, 64, 1, False),
            (64, 128, 2, True),
            (128, 256, 2, True),
            (256, 512, 2, True),
            (512, 256, 1, True),
            (256, 128, 1, True),
            (128, 64, 1, True),
            (64, 64, 1, True),
            (64, 64, 1, True),
            (64, 1, 1, False),
        ]
    )
    assert UNetDiscriminator(4)(torch.rand(2, 3, 24, 40)).shape == (2, 1, 24, 40)


def test_stage_2_starts_from_a_network_without_attention_and_says_when_there_is_no_vgg(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    start = FastRealVSR(dataclasses.replace(TINY, hsa="none"))
    save_fastreal(start, tmp_path / "urn.safetensors", {})
    options = ["--steps", "1", "--batch", "1", "--frames", "6", "--crop", "16", "--discriminator-channels", "4"]
    paths = [str(data), str(data), str(tmp_path / "run"), "--start", str(tmp_path / "urn.safetensors")]
    assert main(["fastreal_gan", *paths, *options]) == 0
    assert "no --vgg FILE: training without the perceptual loss" in capsys.readouterr().out
    trained = load_fastreal(tmp_path / "run/last.safetensors").network
    assert trained.config.hsa == "full"
    change = trained.state_dict()["rb1.main.0.weight"] - start.state_dict()["rb1.main.0.weight"]
    assert 0 < float(change.abs().max()) < 1e-3


def test_a_training_for_another_scale_starts_from_everything_but_the_head(sources: Path, tmp_path: Path) -> None:
    build_dataset(sources, tmp_path / "half", dataclasses.replace(DATA, scale=2))
    torch.manual_seed(1)
    start = FastRealVSR(TINY)
    save_fastreal(start, tmp_path / "x4.safetensors", {})
    data = str(tmp_path / "half")
    options = ["--scale", "2", "--steps", "1", "--batch", "1", "--frames", "6", "--crop", "16"]
    paths = [data, data, str(tmp_path / "run"), "--start", str(tmp_path / "x4.safetensors")]
    assert main(["fastreal", *paths, *options]) == 0
    trained = load_fastreal(tmp_path / "run/last.safetensors").network
    assert trained.scale == 2
    assert trained.conv_last.weight.shape == (12, 8, 3, 3)
    change = trained.state_dict()["rb1.main.0.weight"] - start.state_dict()["rb1.main.0.weight"]
    assert 0 < float(change.abs().max()) < 1e-2


def test_half_the_scale_takes_half_the_blur_and_noise_so_that_small_frames_look_the_same() -> None:
    for seed in range(20):
        x4, x2 = (Degradation.draw(np.random.default_rng(seed), scale=scale) for scale in (4, 2))
        assert x2.sigma == pytest.approx([sigma / 2 for sigma in x4.sigma])
        assert x2.noise == pytest.approx(x4.noise / 2)
        assert (x2.crf, x2.resize, x2.profile) == (x4.crf, x4.resize, x4.profile)


def test_clean_clips_show_the_same_scenes_and_are_only_downsampled(sources: Path, data: Path, tmp_path: Path) -> None:
    build_dataset(sources, tmp_path / "clean", dataclasses.replace(DATA, clean=True))
    for name in ("00000", "00001"):
        truth = np.load(tmp_path / "clean" / name / "gt.npy")
        assert np.array_equal(truth, np.load(data / name / "gt.npy"))
        small = np.load(tmp_path / "clean" / name / "lr.npy")
        for frame, expected in zip(truth, small, strict=True):
            for plane in range(3):
                # Pillow's bicubic also widens its kernel (a = -0.5) by the factor.
                image = Image.fromarray(frame[..., plane].astype(np.float32))
                reference = np.asarray(image.resize((32, 24), Image.Resampling.BICUBIC))
                assert np.abs(reference.clip(0, 255) - expected[..., plane]).max() <= 0.51


def test_training_crops_match_their_truth(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training clips in"):
        Clips(tmp_path, scale=4)
    lr = np.random.default_rng(0).integers(0, 256, (5, 9, 10, 3), dtype=np.uint8)
    write_clip(tmp_path / "00000", lr)
    batch = Crops(Clips(tmp_path, scale=4), frames=2, crop=4).batch(np.random.default_rng(1), 3)
    assert batch.frames.shape == (3, 2, 3, 4, 4)
    assert torch.equal(batch.truth, batch.frames.repeat_interleave(4, 3).repeat_interleave(4, 4))


def test_clips_of_scale_4_serve_a_network_of_scale_2_with_averaged_pictures(tmp_path: Path) -> None:
    lr = np.random.default_rng(0).integers(0, 256, (5, 9, 10, 3), dtype=np.uint8)
    write_clip(tmp_path / "00000", lr)
    truth = np.random.default_rng(1).integers(0, 256, (5, 36, 40, 3), dtype=np.uint8)
    np.save(tmp_path / "00000/gt.npy", truth)
    np.save(tmp_path / "00000/a.npy", 255 - truth)
    piece = Clips(tmp_path, scale=2, targets=["a"]).read(0, (slice(1, 3), slice(2, 6), slice(3, 8)))
    expected = truth[1:3, 8:24, 12:32].reshape(2, 8, 2, 10, 2, 3).mean((2, 4)).transpose(0, 3, 1, 2) / 255
    torch.testing.assert_close(piece.truth[0], torch.from_numpy(expected).float())
    torch.testing.assert_close(piece.targets["a"][0], torch.from_numpy(1 - expected).float())


def write_clip(folder: Path, lr: np.ndarray, scale: int = 4) -> None:
    """A clip whose truth are its enlarged pixels."""
    folder.mkdir(parents=True)
    np.save(folder / "lr.npy", lr)
    np.save(folder / "gt.npy", lr.repeat(scale, axis=1).repeat(scale, axis=2))
    (folder / "clip.json").write_text(json.dumps({"scale": scale}))


def test_clips_of_another_scale_or_too_short_for_a_crop_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(tmp_path / "clips/00000", np.zeros((6, 24, 24, 3), np.uint8), scale=2)
    save_fastreal(FastRealVSR(TINY), tmp_path / "x4.safetensors", {})
    folder = str(tmp_path / "clips")
    command = ["fastreal", folder, folder, str(tmp_path / "run"), "--start", str(tmp_path / "x4.safetensors")]
    assert main([*command, "--steps", "1"]) == 1
    error = capsys.readouterr().err
    assert error == f"error: {folder}/00000 was made for scale 2, the network has scale 4; build other clips\n"
    assert main([*command, "--steps", "1", "--scale", "2", "--frames", "7", "--crop", "16"]) == 1
    assert "has 6 frames of 24x24; a crop of 7 frames of 16x16 does not fit" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["uint8", "float16", "safetensors"])
def test_further_targets_are_cropped_and_turned_as_the_truth_is(tmp_path: Path, kind: str) -> None:
    lr = np.random.default_rng(0).integers(0, 256, (4, 9, 10, 3), dtype=np.uint8)
    write_clip(tmp_path / "00000", lr)
    truth = np.load(tmp_path / "00000/gt.npy")
    with pytest.raises(UserError, match=r"00000 has no teacher-a\.npy or teacher-a\.safetensors"):
        Clips(tmp_path, scale=4, targets=["teacher-a"])
    if kind == "safetensors":
        pictures = torch.from_numpy(truth).to(torch.bfloat16) / 255
        save_file({"pictures": pictures}, tmp_path / "00000/teacher-a.safetensors")
    else:
        pixels = truth if kind == "uint8" else (truth / 255).astype(np.float16)
        np.save(tmp_path / "00000/teacher-a.npy", pixels)
    clips = Clips(tmp_path, scale=4, targets=["teacher-a"])
    batch = Crops(clips, frames=2, crop=4).batch(np.random.default_rng(1), 4)
    torch.testing.assert_close(batch.targets["teacher-a"], batch.truth, rtol=0, atol=3e-3)


def test_validation_clips_of_few_frames_are_judged_by_their_last(sources: Path, data: Path, tmp_path: Path) -> None:
    build_dataset(sources, tmp_path / "short", dataclasses.replace(DATA, clips=1, frames=4))
    trained(settings(data, tmp_path / "run", steps=1, validation=tmp_path / "short"))
    with (tmp_path / "run/log.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert 5 < float(row["psnr"]) < 60
    assert load_fastreal(tmp_path / "run/best.safetensors").network.config == TINY


def test_exported_weights_say_how_they_were_made(data: Path, tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text('{"recipe": "test"}')
    given = settings(data, tmp_path / "run", steps=1, seed=7, bf16=True, metadata=tmp_path / "facts.json")
    trained(given)
    with safe_open(tmp_path / "run/last.safetensors", framework="pt") as file:
        metadata = file.metadata()
    interpreter, _, package, recipe, *options = shlex.split(metadata["command"])
    assert (interpreter, package, recipe) == ("python", "vsvsr.training", "fastreal")
    assert {"--steps", "--seed", "--bf16"} <= set(options)
    assert "--stateless" not in options
    parser = argparse.ArgumentParser()
    add_options(parser, fastreal.Settings)
    assert read_options(fastreal.Settings, parser.parse_args(options)) == given
    assert (metadata["seed"], metadata["step"], metadata["recipe"]) == ("7", "1", "test")
    assert float(metadata["validation_psnr"]) > 5
    (tmp_path / "facts.json").write_text("[1]")
    with pytest.raises(UserError, match=r"facts\.json is not a JSON object of strings"):
        trained(settings(data, tmp_path / "other", steps=1, metadata=tmp_path / "facts.json"))


def test_groups_of_parameters_have_learning_rates_of_their_own() -> None:
    slow, fast = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [{"params": [slow]}, {"params": [fast], "lr": 0.1}]
    optimiser = Optimiser(groups, learning_rate=0.01, processes=ALONE)
    # Adam's first step is as long as the learning rate.
    assert optimiser.step((slow + fast).sum(), 0.5)
    assert [float(parameter.detach()) for parameter in (slow, fast)] == pytest.approx([-0.005, -0.05])
    for limit in ({"clip": 0.5}, {}):
        assert not Optimiser([slow], learning_rate=1.0, processes=ALONE, **limit).step((slow * torch.inf).sum())
    assert float(slow.detach()) == pytest.approx(-0.005)


def test_a_log_of_other_columns_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log({"step": "1", "loss": 0.5})
    folder.log({"step": "2"})
    with pytest.raises(UserError, match=r"log\.csv has no column kept; give another run folder"):
        folder.check({"step": "3", "kept": 0.5})
    assert (tmp_path / "log.csv").read_text().splitlines() == ["step,loss", "1,0.5", "2,"]


def test_every_recipe_has_a_command_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("build", "fastreal", "fastreal_gan", "light_flow", "mia", "skip", "skip_estimators", "ultra"):
        with pytest.raises(SystemExit) as exit_:
            main([name, "--help"])
        assert exit_.value.code == 0
        assert f"usage: python -m vsvsr.training {name}" in capsys.readouterr().out


def test_the_perceptual_loss_reads_a_local_file_and_is_zero_for_equal_pictures(tmp_path: Path) -> None:
    path = tmp_path / "vgg19.pth"
    with pytest.raises(UserError, match=r"vgg19\.pth does not exist"):
        Perceptual(path)
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(UserError, match=r"not VGG19 \(features\.0\.bias is missing"):
        Perceptual(path)
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512)
    places = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
    state = {}
    for place, inputs, outputs in zip(places, widths, widths[1:], strict=False):
        state[f"features.{place}.weight"] = torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5)
        state[f"features.{place}.bias"] = torch.zeros(outputs)
    torch.save(state, path)
    loss = Perceptual(path)
    pictures = torch.rand(1, 3, 32, 32)
    assert loss(pictures, pictures) == 0.0
    assert loss(pictures, pictures.flip(-1)) > loss(pictures, 0.9 * pictures + 0.1 * pictures.flip(-1)) > 0.0
