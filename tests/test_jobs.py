"""A film as a job: parts, what is on disk, going on, joining. Real films, real ffmpeg, the native plugin."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.cases import WeightsOf
from tests.clips import clip_path
from tests.films import decode, ffmpeg, small
from vsvsr.cli.app import app
from vsvsr.jobs.order import Order
from vsvsr.jobs.parts import Part, divide
from vsvsr.streaming import Segments
from vsvsr.video.encoder import Encoding
from vsvsr.video.ffmpeg import describe
from vsvsr.weights import install

Monkey = pytest.MonkeyPatch
Capsys = pytest.CaptureFixture[str]


def run(monkeypatch: Monkey, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["vsvsr", *map(str, arguments)])
    return app()


def digests(path: Path) -> list[str]:
    """Of every frame in a file."""
    clip, _ = decode(path)
    return [
        hashlib.sha256(b"".join(np.ascontiguousarray(frame[plane]).tobytes() for plane in range(3))).hexdigest()
        for frame in clip.frames(close=True)
    ]


def silent(path: Path, frames: int) -> Path:
    """A film of one frame a second: a part of five seconds is five frames."""
    more = ("-vf", "scale=64:36,setpts=N/TB", "-r", "1", "-frames:v", str(frames), "-an")
    ffmpeg("-i", clip_path("bikes.mp4"), *more, "-c:v", "libx264", path)
    return path


def test_parts_begin_where_the_filter_starts_afresh_and_last_five_seconds_at_least() -> None:
    second = 10**9
    every = [n * second // 24 for n in range(1001)]
    parts = divide(Segments(length=50, warmup=5).starts(0, 1000), 1000, every)
    assert parts == [*(Part(first, first + 150) for first in range(0, 750, 150)), Part(750, 1000)]
    assert all(len(part) >= 120 for part in parts)
    assert divide(Segments(length=0, warmup=5).starts(0, 1000), 1000, every) == [Part(0, 1000)]
    # A part of the film keeps to the film's grid.
    assert divide(Segments(length=240, warmup=15).starts(100, 900), 900, every) == [
        Part(100, 240), Part(240, 480), Part(480, 720), Part(720, 900),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["FastReal", "MIA"])
def test_a_film_in_parts_is_to_the_bit_the_film_in_one_pass(
    tmp_path: Path, weights_of: WeightsOf, monkeypatch: Monkey, capsys: Capsys, name: str
) -> None:
    source = silent(tmp_path / "in.mkv", 18)
    arguments = {"FastReal": ("segment=5", "warmup=3"), "MIA": ("length=6", "overlap=2")}[name]
    more = [word for argument in arguments for word in ("--arg", argument)]
    command = ("upscale", source, "--filter", name, "--model-path", weights_of(name), "--encoder", "ffv1", *more)
    job = tmp_path / "job"
    assert run(monkeypatch, *command, tmp_path / "parts.mkv", "--job", job, "--keep-job") == 0
    monkeypatch.setattr("vsvsr.jobs.parts.SHORTEST_SECONDS", 1e6)
    assert run(monkeypatch, *command, tmp_path / "whole.mkv") == 0
    plan = json.loads((job / "job.json").read_text())
    assert plan["parts"] == {
        "FastReal": [[0, 5], [5, 10], [10, 18]],
        "MIA": [[0, 6], [6, 12], [12, 18]],
    }[name]  # fmt: skip
    assert digests(tmp_path / "parts.mkv") == digests(tmp_path / "whole.mkv")
    assert len(set(digests(tmp_path / "parts.mkv"))) > 12
    assert decode(tmp_path / "parts.mkv")[1] == decode(source)[1]


def test_a_film_whose_start_ffmpeg_rounds_to_after_its_first_frame_begins_there(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey
) -> None:
    delayed = ("-an", "-bf", "2", "-use_editlist", "0")  # the first frame is shown at 0.083416667 s
    source = small(tmp_path / "in.mp4", vf="fps=24000/1001", options=delayed)
    assert ", start: 0.083417, " in describe(source)
    target = tmp_path / "out.mkv"
    assert run(monkeypatch, "upscale", source, target, "--model-path", tiny_fastreal) == 0
    times, new = decode(source)[1], decode(target)[1]
    assert all(abs(b - (a - times[0])) <= Fraction(1, 1000) for a, b in zip(times, new, strict=True))


@pytest.mark.parametrize(
    ("suffix", "rate"), [(".mkv", "24000/1001"), (".mp4", "24000/1001"), (".ts", "24000/1001"), (".mp4", "variable")]
)
def test_frames_are_shown_when_the_source_shows_them_however_the_film_is_divided(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, suffix: str, rate: str
) -> None:
    monkeypatch.setattr("vsvsr.jobs.parts.SHORTEST_SECONDS", 0.2)
    vf = "fps=24000/1001" if rate != "variable" else "select='not(eq(mod(n,3),1))'"
    source = small(tmp_path / "in.mp4", vf=f"{vf},setpts=PTS+0.2/TB", frames=24)
    target = tmp_path / f"out{suffix}"
    fine = ("--model-path", tiny_fastreal, "--segment", "5", "--arg", "warmup=1")
    assert run(monkeypatch, "upscale", source, target, *fine, "--job", tmp_path / "job", "--keep-job") == 0
    assert len(json.loads((tmp_path / "job" / "job.json").read_text())["parts"]) > 3
    times, new = decode(source)[1], decode(target)[1]
    tolerance = Fraction(1, 2000) if suffix in (".mkv", ".ts") else 0
    assert len(new) == 24
    assert all(abs((a - new[0]) - (b - times[0])) <= tolerance * 2 for a, b in zip(new, times, strict=True))
    # As a single part has them.
    monkeypatch.setattr("vsvsr.jobs.parts.SHORTEST_SECONDS", 1e6)
    assert run(monkeypatch, "upscale", source, tmp_path / f"one{suffix}", *fine) == 0
    assert decode(tmp_path / f"one{suffix}")[1] == new


class Killed:
    """A film that is begun, killed, and begun again."""

    def __init__(self, folder: Path, weights: Path, *, frames: int) -> None:
        self.source = silent(folder / "in.mkv", frames)
        self.target = folder / "out" / "film.mkv"
        self.job = folder / "job"
        self.target.parent.mkdir()
        self.command = [
            *(sys.executable, "-m", "vsvsr", "upscale", self.source, self.target, "--model-path", weights),
            *("--encoder", "ffv1", "--segment", "5", "--arg", "warmup=3", "--job", self.job, "--keep-job"),
        ]

    def begin(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def parts(self) -> dict[str, int]:
        """Finished parts, and when they were written."""
        return {path.name: path.stat().st_mtime_ns for path in self.job.glob("*.mkv")}

    def wait_for_parts(self, process: "subprocess.Popen[str]", count: int) -> None:
        deadline = time.monotonic() + 120
        while len(self.parts()) < count:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def killed(tmp_path: Path, tiny_fastreal: Path) -> Killed:
    return Killed(tmp_path, tiny_fastreal, frames=40)


def test_a_killed_job_goes_on_at_the_first_missing_part(killed: Killed, tmp_path: Path, monkeypatch: Monkey) -> None:
    process = killed.begin()
    killed.wait_for_parts(process, 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = killed.parts()
    assert not killed.target.exists()
    done = killed.begin()
    assert f"{len(before)} of 8 parts are there" in done.communicate()[1]
    assert done.returncode == 0
    after = killed.parts()
    assert len(after) == 8
    assert {name: after[name] for name in before} == before
    whole = [*killed.command[3:], "--overwrite", "--job", tmp_path / "other"]
    monkeypatch.setattr("vsvsr.jobs.parts.SHORTEST_SECONDS", 1e6)
    first = digests(killed.target)
    assert run(monkeypatch, *whole) == 0
    assert digests(killed.target) == first
    assert list(killed.target.parent.iterdir()) == [killed.target]


def test_a_finished_part_that_is_not_what_was_written_is_named_and_made_again(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    source, target, job = silent(tmp_path / "in.mkv", 20), tmp_path / "out.mkv", tmp_path / "job"
    command = ("upscale", source, target, "--model-path", tiny_fastreal, "--segment", "5", "--arg", "warmup=3")
    kept = (*command, "--encoder", "ffv1", "--job", job, "--keep-job")
    assert run(monkeypatch, *kept) == 0
    right = digests(target)
    parts = sorted(job.glob("*.mkv"))
    contents = [part.read_bytes() for part in parts]
    parts[0].write_bytes(contents[0][:-1])
    parts[1].write_bytes(contents[1][:-100] + b"?" * 100)
    parts[2].with_suffix(".json").unlink()
    capsys.readouterr()
    assert run(monkeypatch, *kept, "-y") == 0
    said = capsys.readouterr().err
    for part, frames in zip(parts, ("0 to 4", "5 to 9", "10 to 14"), strict=False):
        assert f"{part} is not what was written (frames {frames}): it is made again" in said
    assert str(parts[3]) not in said
    assert "20 frames of 256x144" in said
    assert digests(target) == right


def test_another_order_on_the_same_job_is_refused_with_the_difference(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    source, target, job = silent(tmp_path / "in.mkv", 10), tmp_path / "out.mkv", tmp_path / "job"
    command = ("upscale", source, target, "-y", "--job", job, "--keep-job", "--arg", "warmup=3")
    first = (*command, "--model-path", tiny_fastreal, "--segment", "5")
    assert run(monkeypatch, *first) == 0
    before = {path: path.read_bytes() for path in job.iterdir()}
    result = target.read_bytes()
    other = tmp_path / "other.safetensors"
    other.write_bytes(tiny_fastreal.read_bytes())
    capsys.readouterr()
    for changed, difference in (
        ((*first, "--crf", "20"), "encoder was -c:v libx264 -crf 18, is -c:v libx264 -crf 20"),
        ((*first[:-1], "6"), "arguments.segment was 5, is 6; parts was "),
        ((*first, "--fp16"), "arguments.fp16 was not given, is 1"),
        ((*first, "--start", "1"), "frames was [0, 10], is [1, 10]"),
        ((*first, "--arg", "tile=32,0"), "tile was [0, 0], is [32, 0]"),
        ((*first, "--arg", "backend=onnx"), "arguments.backend was not given, is onnx; device was CPU, "),
        ((*command, "--model-path", other, "--segment", "5"), "arguments.model_path was "),
    ):
        assert run(monkeypatch, *changed) == 1
        said = capsys.readouterr().err
        assert f"vsvsr: {job} was begun differently: " in said
        assert difference in said
    os.utime(source, ns=(0, 0))
    with source.open("ab") as file:
        file.write(b"\0")
    assert run(monkeypatch, *first) == 1
    said = capsys.readouterr().err
    assert "source.ends was " in said
    assert "source.size was " in said
    assert {path: path.read_bytes() for path in job.iterdir()} == before
    assert target.read_bytes() == result


def test_two_processes_on_one_job_are_one_and_an_error(killed: Killed) -> None:
    first = killed.begin()
    killed.wait_for_parts(first, 1)
    # Held, so that it cannot be done before the second one looks.
    os.killpg(first.pid, signal.SIGSTOP)
    try:
        second = killed.begin()
        said = second.communicate(timeout=120)[1]
    finally:
        os.killpg(first.pid, signal.SIGCONT)
    assert (second.returncode, said) == (
        1, f"vsvsr: {killed.job}: another process works on it, in {killed.job}\n"
    )  # fmt: skip
    first.communicate()
    assert first.returncode == 0
    assert decode(killed.target)[0].num_frames == 40


def test_a_signal_keeps_finished_parts_and_nothing_else(killed: Killed) -> None:
    process = killed.begin()
    killed.wait_for_parts(process, 2)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[1].endswith("vsvsr: interrupted\n")
    assert process.returncode == 130
    parts = set(killed.parts())
    left = {path.name for path in killed.job.iterdir()}
    records = {Path(name).with_suffix(".json").name for name in parts}
    assert left - {"lock"} == {"job.json", *parts, *records}
    assert list(killed.target.parent.iterdir()) == []


def test_a_folder_with_other_files_is_no_job(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    source, elsewhere = small(tmp_path / "in.mp4", frames=2), tmp_path / "out"
    elsewhere.mkdir()
    here = sorted(tmp_path.iterdir())
    command = ("upscale", source, elsewhere / "out.mp4", "--model-path", tiny_fastreal)
    assert run(monkeypatch, *command, "--job", tmp_path) == 1
    assert capsys.readouterr().err == f"vsvsr: {tmp_path} holds other files; give --job a folder of its own\n"
    assert sorted(tmp_path.iterdir()) == here


def test_a_film_in_the_folder_of_its_job_is_refused(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    source, job = small(tmp_path / "in.mp4", frames=2), tmp_path / "job"
    job.mkdir()
    target = job / "out.mkv"
    assert run(monkeypatch, "upscale", source, target, "--model-path", tiny_fastreal, "--job", job) == 1
    assert capsys.readouterr().err == (f"vsvsr: {target} is in the folder of its job; give --job a folder of its own\n")
    assert list(job.iterdir()) == []


def test_what_is_not_the_jobs_stays_in_its_folder(tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey) -> None:
    source, target, job = silent(tmp_path / "in.mkv", 2), tmp_path / "out.mkv", tmp_path / "job"
    command = ("upscale", source, target, "--model-path", tiny_fastreal, "--job", job)
    assert run(monkeypatch, *command, "--keep-job") == 0
    mine = ["20240101.json", "20240101.mkv", "joined at last.mkv", "notes.json", "other.mkv"]
    for name in mine:
        (job / name).write_bytes(b"mine")
    assert run(monkeypatch, *command, "-y") == 0
    assert sorted(path.name for path in job.iterdir()) == mine
    assert run(monkeypatch, *command, "-y") == 1  # now it is a folder with other files
    for path in job.iterdir():
        path.unlink()
    assert run(monkeypatch, *command, "-y") == 0
    assert not job.exists()


def test_a_list_of_prompts_is_one_of_the_files_that_a_job_depends_on(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    arguments: dict[str, object] = {"prompt": str(prompts)}
    order = Order(
        source=tmp_path / "in.mkv",
        target=tmp_path / "out.mkv",
        filter_name="Ultra",
        arguments=arguments,
        frames=slice(None),
        encoding=Encoding(),
    )
    assert order.files == {}
    prompts.write_text("0: a street")
    assert order.files == {"prompt": prompts}
    assert replace(order, arguments={"prompt": "a street" * 1000}).files == {}


def test_a_preview_is_no_film(tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys) -> None:
    source = small(tmp_path / "in.mp4", frames=2)
    command = ("upscale", source, tmp_path / "out.mp4", "--model-path", tiny_fastreal, "--arg", "preview=1")
    assert run(monkeypatch, *command) == 2
    assert capsys.readouterr().err == ("vsvsr: preview=1 is for seeking in an editor; its frames are approximate\n")


def test_an_option_that_drops_frames_is_named(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    source, target = small(tmp_path / "in.mp4", frames=8), tmp_path / "out.mp4"
    command = ("upscale", source, target, "--model-path", tiny_fastreal, "--encoder-option", "vf=select=gt(n\\,1)")
    assert run(monkeypatch, *command) == 1
    assert capsys.readouterr().err == (f"vsvsr: {target}: 6 frames came out of 8; no option may add or drop frames\n")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "none", folder], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_job_goes_on_when_a_full_disk_has_room_again(
    tmp_path: Path, small_disk: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    source, target = silent(tmp_path / "in.mkv", 20), small_disk / "out.mkv"
    command = ("upscale", source, target, "--model-path", tiny_fastreal, "--segment", "5", "--arg", "warmup=3")
    lossless = (*command, "--encoder", "ffv1")
    assert run(monkeypatch, *lossless) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"vsvsr: {target}: ")
    assert said.endswith("No space left on device\n")
    assert said.count("\n") == 1
    (job,) = small_disk.iterdir()
    done = {path.name: path.stat().st_mtime_ns for path in job.glob("*.mkv")}
    assert 1 <= len(done) < 4
    assert not list(job.glob(".vsvsr-*"))
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert run(monkeypatch, *lossless, "--keep-job") == 0
    assert f"{len(done)} of 4 parts are there" in capsys.readouterr().err
    assert {name: (job / name).stat().st_mtime_ns for name in done} == done
    assert len(digests(target)) == 20


def test_parts_of_another_container_are_another_job(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    source, job = silent(tmp_path / "in.mkv", 2), tmp_path / "job"
    command = ("--model-path", tiny_fastreal, "--job", job, "--keep-job")
    assert run(monkeypatch, "upscale", source, tmp_path / "a.mkv", *command) == 0
    assert run(monkeypatch, "upscale", source, tmp_path / "a.mp4", *command) == 1
    assert "was begun differently: container was .mkv, is .mp4; " in capsys.readouterr().err


def test_a_folder_of_pictures_can_hold_other_things_and_the_film(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey
) -> None:
    folder = tmp_path / "pictures"
    (folder / "zz").mkdir(parents=True)
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=48x32", "-frames:v", "2", folder / "%d.png")
    (folder / "._0.png").write_bytes(b"what macOS leaves")
    assert run(monkeypatch, "upscale", folder, folder / "out.mkv", "--model-path", tiny_fastreal) == 0
    assert decode(folder / "out.mkv")[0].num_frames == 2


def test_a_source_that_was_replaced_in_between_is_another_job(killed: Killed) -> None:
    process = killed.begin()
    killed.wait_for_parts(process, 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = killed.parts()
    state = killed.source.stat()
    silent(killed.source, 41)
    os.utime(killed.source, ns=(state.st_atime_ns, state.st_mtime_ns))
    again = killed.begin()
    said = again.communicate()[1]
    assert (again.returncode, len([line for line in said.splitlines() if "indexing" not in line])) == (1, 1)
    assert f"{killed.job} was begun differently: frames was [0, 40], is [0, 41]; " in said
    assert killed.parts() == before
    assert not killed.target.exists()


def test_the_default_weights_divide_a_film_on_the_grid_that_they_carry(
    tmp_path: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    install("realesr-animevideov3")  # a teacher, which no film depends on
    source = small(tmp_path / "in.mkv", vf="scale=32:18", frames=131)
    assert run(monkeypatch, "plan", source) == 0
    monkeypatch.setattr("vsvsr.jobs.parts.SHORTEST_SECONDS", 1.0)
    assert run(monkeypatch, "plan", source) == 0
    assert capsys.readouterr().out.splitlines() == ["-s 0 -e 130", "-s 0 -e 99", "-s 100 -e 130"]
    one = ("--encoder", "ffv1", "--end", "104")
    job = tmp_path / "job"
    assert run(monkeypatch, "upscale", source, tmp_path / "parts.mkv", *one, "--job", job, "--keep-job") == 0
    # Other weights may be installed, or taken away, while a job rests.
    assert json.loads((job / "job.json").read_text())["weights"].keys() == {"fastreal-x4"}
    monkeypatch.setattr("vsvsr.jobs.parts.SHORTEST_SECONDS", 1e6)
    assert run(monkeypatch, "upscale", source, tmp_path / "whole.mkv", *one) == 0
    assert digests(tmp_path / "parts.mkv") == digests(tmp_path / "whole.mkv")
