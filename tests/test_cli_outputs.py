"""What ``vsvsr upscale`` can write and read besides films, and what the command line shows."""

import importlib.metadata
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import vapoursynth as vs

from tests.films import decode, ffmpeg, small
from vsvsr.cli import progress
from vsvsr.cli.app import app
from vsvsr.jobs import film as jobs
from vsvsr.video.ffmpeg import describe
from vsvsr.video.source import Pictures, open_video

Monkey = pytest.MonkeyPatch
Capsys = pytest.CaptureFixture[str]


def run(monkeypatch: Monkey, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["vsvsr", *map(str, arguments)])
    return app()


def expected(source: Path, weights: Path) -> np.ndarray:
    """What the filter makes of a film, in 8 bits."""
    clip = vs.core.vsvsr.FastReal(open_video(source).clip, model_path=str(weights))
    return np.stack(list(Pictures(clip)))


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return small(tmp_path / "in.mp4", frames=4)


def test_numbered_pictures_are_the_frames_under_their_numbers(
    film: Path, tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    folder = tmp_path / "100%"
    folder.mkdir()
    target, part = folder / "f_%03d.png", ("--start", "1", "--end", "4")
    assert run(monkeypatch, "upscale", film, target, "--model-path", tiny_fastreal, *part) == 0
    assert "3 frames of 256x144" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["f_001.png", "f_002.png", "f_003.png"]
    np.testing.assert_array_equal(np.stack(list(Pictures(open_video(folder).clip))), expected(film, tiny_fastreal)[1:])
    assert run(monkeypatch, "upscale", film, target, "--model-path", tiny_fastreal) == 1
    assert f"{folder / 'f_001.png'} exists" in capsys.readouterr().err
    # And a folder of pictures is a source.
    assert run(monkeypatch, "upscale", folder, tmp_path / "again.mkv", "--model-path", tiny_fastreal) == 0
    again, _ = decode(tmp_path / "again.mkv")
    assert (again.width, again.height, again.num_frames, again.fps) == (1024, 576, 3, 25)


def test_other_percent_signs_in_the_name_of_pictures_stay(
    film: Path, tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey
) -> None:
    for name, made in (("100%_%02d.png", "100%_01.png"), ("x%d_%d.png", "x1_%d.png")):
        part = ("--model-path", tiny_fastreal, "--frame", "1")
        assert run(monkeypatch, "upscale", film, tmp_path / name, *part) == 0
        assert (tmp_path / made).is_file()


def test_a_dry_run_refuses_pictures_that_cannot_be(
    film: Path, tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    command = ("upscale", film, tmp_path / "a.png", "--model-path", tiny_fastreal, "--dry-run")
    assert run(monkeypatch, *command) == 2
    assert "a.png holds one frame, not 4" in capsys.readouterr().err


def test_a_film_that_comes_to_be_meanwhile_is_not_replaced(
    film: Path, tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    target = tmp_path / "out.mkv"
    join = jobs.join

    def slow(*given: object) -> None:
        join(*given)
        target.write_text("another film")

    monkeypatch.setattr(jobs, "join", slow)
    command = ("upscale", film, target, "--model-path", tiny_fastreal)
    assert run(monkeypatch, *command) == 1
    assert "out.mkv exists; choose another name or give --overwrite" in capsys.readouterr().err
    assert target.read_text() == "another film"
    assert run(monkeypatch, *command, "--overwrite") == 0  # the parts are there still
    assert "1 of 1 parts are there" in capsys.readouterr().err


def test_pictures_are_shown_as_often_as_is_asked_for(
    film: Path, tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    folder, target, rate = tmp_path / "pictures", tmp_path / "out.mkv", Fraction(24000, 1001)
    folder.mkdir()
    ffmpeg("-i", film, folder / "%d.png")
    command = ("upscale", folder, target, "--model-path", tiny_fastreal, "--keep-job")
    assert run(monkeypatch, *command, "--fps", "24000/1001") == 0
    made, stamps = decode(target)
    assert made.fps == rate
    assert stamps == [Fraction(round(1000 * n / rate), 1000) for n in range(4)]  # Matroska has milliseconds
    # Parts of another rate are not mixed in.
    assert run(monkeypatch, *command, "-y") == 1
    assert "source.timestamps was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "codec", "tolerance"),
    [("a.png", "png", 0), ("a.tiff", "tiff", 0), ("a.webp", "webp", 0), ("a.jpg", "mjpeg", 6)],
)
def test_one_frame_is_a_picture(
    film: Path, tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, name: str, codec: str, tolerance: float
) -> None:
    target = tmp_path / name
    part = ("--start", "2", "--end", "3")
    assert run(monkeypatch, "upscale", film, target, "--model-path", tiny_fastreal, *part) == 0
    assert f"Video: {codec}" in describe(target)
    error = Pictures(open_video(target).clip)[0].astype(int) - expected(film, tiny_fastreal)[2]
    assert np.abs(error).mean() <= tolerance


def test_pictures_of_any_width_are_the_frames(tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey) -> None:
    source = small(tmp_path / "in.mkv", vf="scale=46:34", frames=2)  # rows of 184 bytes, which VapourSynth pads
    assert run(monkeypatch, "upscale", source, tmp_path / "%d.png", "--model-path", tiny_fastreal) == 0
    made = [Pictures(open_video(tmp_path / f"{n}.png").clip)[0] for n in range(2)]
    np.testing.assert_array_equal(np.stack(made), expected(source, tiny_fastreal))


def test_the_source_is_never_written_over(
    film: Path, tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    assert run(monkeypatch, "upscale", film, folder / "%04d.png", "--model-path", tiny_fastreal) == 0
    before = {path: path.read_bytes() for path in (film, *folder.iterdir())}
    capsys.readouterr()
    for command, kept in (
        (("upscale", folder, folder / "%04d.png", "--model-path", tiny_fastreal, "-y"), folder / "0000.png"),
        (
            ("upscale", folder, folder / "0001.png", "--end", "1", "--model-path", tiny_fastreal, "-y"),
            folder / "0001.png",
        ),
        (("plan", film, "--scenes", film), film),
        (("evaluate", film, film, "--per-frame", film), film),
        (("evaluate", film, film, "--sheet", film), film),
        (("evaluate", folder, folder, "--sheet", folder / "0001.png"), folder / "0001.png"),
        (("export", tiny_fastreal, tiny_fastreal, "-y"), tiny_fastreal),
    ):
        assert run(monkeypatch, *command) == 1
        assert capsys.readouterr().err.splitlines()[-1] == f"vsvsr: {kept} is the input; choose another name"
    assert {path: path.read_bytes() for path in before} == before


def test_a_codec_that_the_container_cannot_hold_is_an_error_before_the_first_frame(
    film: Path, tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    command = ("upscale", film, tmp_path / "out.webm", "--model-path", tiny_fastreal, "--encoder", "libx264")
    assert run(monkeypatch, *command, "--progress", "json") == 1
    said = capsys.readouterr()
    assert "Only VP8 or VP9 or AV1 video" in said.err
    assert '"frames"' not in said.out
    assert not list(tmp_path.glob(".out*"))


def test_ten_bits_stay_more_than_eight_in_a_picture(tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey) -> None:
    source = small(tmp_path / "in.mkv", vf="format=yuv420p10", frames=1)
    assert run(monkeypatch, "upscale", source, tmp_path / "out.png", "--model-path", tiny_fastreal) == 0
    assert "rgb48" in describe(tmp_path / "out.png")


def test_several_frames_are_no_single_picture(
    film: Path, tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    target = tmp_path / "out.png"
    assert run(monkeypatch, "upscale", film, target, "--model-path", tiny_fastreal) == 2
    assert capsys.readouterr().err == (
        f"vsvsr: {target} holds one frame, not 4; give --start and --end, or number the files: out_%04d.png\n"
    )
    assert list(tmp_path.iterdir()) == [film]


@pytest.mark.parametrize(
    ("name", "codec", "sound"),
    [
        ("out.webm", "vp9", "opus"),
        ("out.gif", "gif", None),
        ("out.mkv", "h264", "aac"),
        ("out.avi", "h264", "aac"),
        ("out.ts", "h264", "aac"),
        ("part.mkv", "h264", "aac"),
    ],
)
def test_the_container_chooses_an_encoder_that_it_can_hold(
    film: Path, tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, name: str, codec: str, sound: str | None
) -> None:
    assert run(monkeypatch, "upscale", film, tmp_path / name, "--model-path", tiny_fastreal) == 0
    described = describe(tmp_path / name)
    assert re.findall(r"Video: (\w+)", described) == [codec]
    assert re.findall(r"Audio: (\w+)", described) == ([sound] if sound else [])
    assert decode(tmp_path / name)[0].num_frames == 4


def test_the_last_line_tells_the_size_in_the_file(
    film: Path, tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    smaller = ("--encoder-option", "vf=scale=128:72")
    assert run(monkeypatch, "upscale", film, tmp_path / "out.mp4", "--model-path", tiny_fastreal, *smaller) == 0
    assert "4 frames of 128x72 in" in capsys.readouterr().err


def test_progress_is_told_without_a_terminal_too(
    film: Path, tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    target = tmp_path / "out.mp4"
    assert run(monkeypatch, "upscale", film, target, "--model-path", tiny_fastreal) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "indexing" not in line]
    assert lines[:-1] == [f"{target}: {done} of 4 frames" for done in range(5)]


def test_a_small_clip_without_a_truth_has_nothing_to_be_judged_by(
    film: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    assert run(monkeypatch, "evaluate", film) == 1
    assert capsys.readouterr().err == (
        f"vsvsr: {film} is 64x36: without a truth only NIQE can be told, and that needs at least 192x192\n"
    )


def test_names_of_weights_are_shown_whole(monkeypatch: Monkey, capsys: Capsys) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert run(monkeypatch, "weights", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"fastreal-compact-x4", "skip-estimators-BasicVSR_Vimeo90K_BDx4"} <= {line.split()[0] for line in lines}
    assert not any("…" in line for line in lines)


def test_the_help_of_evaluate_names_the_extra(monkeypatch: Monkey, capsys: Capsys) -> None:
    assert run(monkeypatch, "evaluate", "--help") == 0
    assert "both need vsvsr[evaluate]." in " ".join(capsys.readouterr().out.split())


def test_unknown_weights_are_one_line(monkeypatch: Monkey, capsys: Capsys) -> None:
    assert run(monkeypatch, "weights", "install", "nonsense") == 1
    said = capsys.readouterr()
    assert said.err.startswith("vsvsr: weights 'nonsense' are unknown; known are ")
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_the_module_is_the_command_and_tells_its_version() -> None:
    told = subprocess.run([sys.executable, "-m", "vsvsr", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"vsvsr {importlib.metadata.version('vsvsr')}\n"


@pytest.mark.parametrize("arguments", [("-h",), ("upscale", "-h")])
def test_h_is_help(monkeypatch: Monkey, capsys: Capsys, arguments: tuple[str, ...]) -> None:
    assert run(monkeypatch, *arguments) == 0
    assert "Usage: vsvsr" in capsys.readouterr().out
