"""Folders and lists of films, what a film will take, progress for programs, plans for other pipelines."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import vapoursynth as vs

from tests.films import decode, ffmpeg, small
from tests.test_jobs import silent
from vsvsr.cli import progress
from vsvsr.cli.app import app

Monkey = pytest.MonkeyPatch
Capsys = pytest.CaptureFixture[str]


def run(monkeypatch: Monkey, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["vsvsr", *map(str, arguments)])
    return app()


def test_a_folder_becomes_a_folder_and_one_bad_film_stops_no_other(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    films, out = tmp_path / "films", tmp_path / "films" / "large"
    (films / "deep" / "er").mkdir(parents=True)
    good = small(films / "a.mp4", frames=2)
    shutil.copy(good, films / "deep" / "er" / "b.mkv")
    ffmpeg("-i", good, "-c", "copy", films / "deep" / "c.avi")
    (films / "broken.mp4").write_text("not a film")
    (films / "notes.txt").write_text("not for us")
    shutil.copy(good, films / ".hidden.mp4")
    command = ("upscale", films, out, "--model-path", tiny_fastreal)
    assert run(monkeypatch, *command) == 1
    said = capsys.readouterr().err
    assert f"vsvsr: {films / 'broken.mp4'} holds no video that can be read: " in said
    assert said.endswith("3 of 4 films made, 0 were there, 1 failed\n")
    made = sorted(path for path in out.rglob("*") if path.is_file())
    assert made == [out / "a.mp4", out / "deep" / "c.avi.mkv", out / "deep" / "er" / "b.mkv"]
    assert all(decode(path)[0].num_frames == 2 for path in made)
    # Again: what is there stays as it is, what failed is tried again.
    (films / "broken.mp4").write_bytes(good.read_bytes())
    times = [path.stat().st_mtime_ns for path in made]
    assert run(monkeypatch, *command) == 0
    assert capsys.readouterr().err.endswith("1 of 4 films made, 3 were there, 0 failed\n")
    assert [path.stat().st_mtime_ns for path in made] == times
    assert (out / "broken.mp4").is_file()


def test_several_films_go_into_one_folder(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    (tmp_path / "other").mkdir()
    films = [small(tmp_path / name, frames=2) for name in ("a.mp4", "b.mkv", "other/a.mp4")]
    more = ("--model-path", tiny_fastreal)
    assert run(monkeypatch, "upscale", *films[:2], tmp_path / "out", *more) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.mp4", "b.mkv"]
    capsys.readouterr()
    monkeypatch.chdir(tmp_path / "other")
    shutil.copy("a.mp4", "A.mp4")
    assert run(monkeypatch, "upscale", films[0], "A.mp4", ".", *more) == 2
    assert run(monkeypatch, "upscale", films[1], "A.mp4", ".", *more) == 1
    said = capsys.readouterr().err
    assert "vsvsr: A.mp4 is the input; choose another name" in said
    assert said.endswith("1 of 2 films made, 0 were there, 1 failed\n")
    for arguments, code, line in (
        ((*films, tmp_path / "out"), 2, f"{tmp_path / 'out' / 'a.mp4'} would be made of several inputs; "),
        ((*films[:2], tmp_path / "out", "--job", tmp_path / "j"), 2, "--job is the folder of one film; "),
        ((tmp_path / "nowhere", films[0], tmp_path / "out"), 1, f"{tmp_path / 'nowhere'} is neither a "),
        (("a.mp4", "A.mp4", tmp_path / "out"), 2, f"{tmp_path / 'out' / 'a.mp4'} would be made of several inputs; "),
        ((tmp_path / "empty", tmp_path / "out"), 1, f"{tmp_path / 'empty'} holds no films; numbered pictures "),
    ):  # fmt: skip
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert run(monkeypatch, "upscale", *arguments, *more) == code
        said = capsys.readouterr().err
        assert said.startswith(f"vsvsr: {line}")
        assert said.count("\n") == 1


def test_a_dry_run_tells_parts_and_size_and_writes_nothing(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    source = silent(tmp_path / "in.mkv", 18)
    more = ("--model-path", tiny_fastreal, "--segment", "5", "--arg", "warmup=3", "--height", "90", "--dry-run")
    assert run(monkeypatch, "upscale", source, tmp_path / "out.mkv", *more) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == [
        f"{tmp_path / 'out.mkv'}: 18 frames of 160x90 YUV420P8 in 3 parts",
        *("  frames 0 to 4", "  frames 5 to 9", "  frames 10 to 17"),
    ]
    assert " on one device, " in lines[-1]
    assert " a frame without its encoder" in lines[-1]
    assert sorted(tmp_path.iterdir()) == [source]


def test_progress_can_be_read_by_a_program(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    monkeypatch.setattr(progress, "JSON_SECONDS", 0.0)
    source, target = silent(tmp_path / "in.mkv", 10), tmp_path / "out.mkv"
    job = ("--job", tmp_path / "job", "--keep-job")
    command = ("upscale", source, target, "--model-path", tiny_fastreal, "--segment", "5", "--arg", "warmup=3", *job)
    assert run(monkeypatch, *command, "--progress", "json") == 0
    said = capsys.readouterr()
    assert said.err == ""
    told = [json.loads(line) for line in said.out.splitlines()]
    assert {line["file"] for line in told} == {str(target)}
    frames = [line for line in told if line["event"] == "frames"]
    assert [line["done"] for line in frames] == list(range(11))
    assert {line["total"] for line in frames} == {10}
    assert (frames[0]["eta"], frames[-1]["eta"]) == (None, 0)
    # What is left at the speed of what was made now.
    assert all(line["eta"] == pytest.approx((10 - line["done"]) / line["fps"]) for line in frames[1:])
    assert (told[-1]["event"], told[-1]["frames"], told[-1]["width"]) == ("done", 10, 256)
    assert run(monkeypatch, *command, "--progress", "json", "-y") == 0
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["done"], line["fps"]) for line in again if line["event"] == "frames"] == [(10, None)]
    assert run(monkeypatch, *command, "--progress", "json") == 1
    assert json.loads(capsys.readouterr().out) == {
        "file": str(target), "event": "failed", "text": f"{target} exists; choose another name or give --overwrite",
    }  # fmt: skip


def test_a_program_that_stops_reading_the_progress_ends_the_film(tmp_path: Path, tiny_fastreal: Path) -> None:
    source, folder = silent(tmp_path / "in.mkv", 100), tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, "-m", "vsvsr", "upscale", source, folder / "out.mkv", "--model-path", tiny_fastreal]
    process = subprocess.Popen([*command, "--progress", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    while json.loads(process.stdout.readline())["event"] != "frames":
        pass
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["out.gif", "%d.png"])
def test_what_pictures_of_a_film_with_sound_will_take_is_told(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys, name: str
) -> None:
    source = small(tmp_path / "in.mp4", frames=2)
    command = ("upscale", source, tmp_path / name, "--model-path", tiny_fastreal, "--dry-run")
    assert run(monkeypatch, *command) == 0
    assert ": 2 frames of 256x144 RGB24 in 1 parts" in capsys.readouterr().out


def test_a_plan_divides_a_film_for_vspipe_and_av1an_without_changing_a_pixel(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    source, scenes = silent(tmp_path / "in.mkv", 18), tmp_path / "scenes.json"
    arguments = (f"model_path={tiny_fastreal}", "segment=5", "warmup=3")
    command = ("plan", source, *(word for each in arguments for word in ("--arg", each)))
    assert run(monkeypatch, *command) == 0
    assert capsys.readouterr().out.splitlines() == ["-s 0 -e 4", "-s 5 -e 9", "-s 10 -e 17"]
    assert run(monkeypatch, *command, "--scenes", scenes) == 0
    written = json.loads(scenes.read_text())
    assert written["frames"] == 18
    assert [(scene["start_frame"], scene["end_frame"]) for scene in written["scenes"]] == [(0, 5), (5, 10), (10, 18)]
    assert [scene["zone_overrides"] for scene in written["split_scenes"]] == [None] * 3
    script = tmp_path / "script.vpy"
    script.write_text(
        "import vapoursynth as vs\n"
        f"clip = vs.core.bs.VideoSource({str(source)!r}, cachemode=0)\n"
        "clip = clip.resize.Bicubic(format=vs.RGBS, matrix_in_s='709')\n"
        f"vs.core.vsvsr.FastReal(clip, model_path={str(tiny_fastreal)!r}, segment=5, warmup=3, device_index=-1)"
        ".resize.Point(format=vs.RGB24).set_output()\n"
    )
    vspipe = Path(vs.__file__).with_name("vspipe")

    def rendered(*options: str) -> bytes:
        return subprocess.run([vspipe, *options, script, "-"], check=True, capture_output=True).stdout

    whole, size = rendered(), 3 * 256 * 144
    assert len(whole) == 18 * size
    assert rendered("-s", "5", "-e", "9") == whole[5 * size : 10 * size]
