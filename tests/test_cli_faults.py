"""What goes wrong around the command line: disks, names, signals, ffmpeg. Nothing half, one line, no traceback."""

import importlib.metadata
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import pytest

from tests.clips import clip_path
from tests.films import decode, ffmpeg, small
from vsvsr.cli.app import app
from vsvsr.errors import UserError
from vsvsr.files import check_target, written_whole
from vsvsr.jobs import work


def failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 1
) -> str:
    """The line that the command ends with."""
    monkeypatch.setattr(sys, "argv", ["vsvsr", *map(str, arguments)])
    assert app() == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("vsvsr: ")
    assert said.err.count("\n") == 1
    return said.err.removeprefix("vsvsr: ").rstrip("\n")


def succeeded(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["vsvsr", *map(str, arguments)])
    assert app() == 0


def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody can write to, root included."""
    yield from mounted(tmp_path / "read_only", "ro")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "tiny_disk", "size=8k")


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return small(tmp_path / "in.mp4", frames=2)


Monkey = pytest.MonkeyPatch
Capsys = pytest.CaptureFixture[str]


def test_a_folder_as_target_is_refused_before_anything_is_done(
    tmp_path: Path, film: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    target = tmp_path / "out.mp4"
    target.mkdir()
    assert failed(monkeypatch, capsys, "upscale", film, target, "-y") == (
        f"{target} is a folder; give the name of a file"
    )


def test_a_read_only_folder_is_named_before_anything_is_done(
    read_only: Path, film: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    reason = "Read-only file system"
    target = read_only / "out.mp4"
    assert failed(monkeypatch, capsys, "upscale", film, target) == f"{target}: {reason}"
    job = ("--job", film.parent / "parts")
    assert failed(monkeypatch, capsys, "upscale", film, target, *job) == f"{target}: {reason}"
    assert not (film.parent / "parts").exists()
    csv = read_only / "frames.csv"
    assert failed(monkeypatch, capsys, "evaluate", "no.mp4", "no.mp4", "--per-frame", csv) == f"{csv}: {reason}"
    assert failed(monkeypatch, capsys, "demo", "--output", read_only / "demo") == f"{read_only / 'demo'}: {reason}"
    monkeypatch.setenv("VSVSR_WEIGHTS_DIR", str(read_only / "weights"))
    said = failed(monkeypatch, capsys, "weights", "install", "BasicVSR_REDS4")
    assert said.startswith(f"the folder of weights {read_only / 'weights'} cannot be written: {reason}; set ")


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tiny_disk: Path, film: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    target = tiny_disk / "out.mkv"
    said = failed(monkeypatch, capsys, "upscale", film, target, "--model-path", tiny_fastreal, "--encoder", "ffv1")
    assert said.startswith(f"{target}: ")
    assert "No space left on device" in said
    assert list(tiny_disk.iterdir()) == []


def test_outputs_of_evaluate_are_checked_before_the_films_are_opened(
    tmp_path: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    nowhere = tmp_path / "nowhere"
    for option, target, reason in (
        ("--per-frame", nowhere / "frames.csv", f": there is no folder {nowhere}"),
        ("--sheet", nowhere / "sheet.png", f": there is no folder {nowhere}"),
        ("--sheet", tmp_path, " is a folder; give the name of a file"),
    ):
        assert failed(monkeypatch, capsys, "evaluate", "no.mp4", option, target) == f"{target}{reason}"


def test_a_demo_in_a_place_that_cannot_be_is_one_line(
    tmp_path: Path, film: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    assert failed(monkeypatch, capsys, "demo", "--output", film / "demo") == f"{film / 'demo'}: Not a directory"


def test_names_that_are_too_long_are_one_line(film: Path, monkeypatch: Monkey, capsys: Capsys) -> None:
    name = film.with_name("x" * 300 + ".mp4")
    assert failed(monkeypatch, capsys, "upscale", film, name) == f"{name}: File name too long"
    with pytest.raises(UserError, match=f"^{name}: File name too long$"):
        check_target(name)
    assert failed(monkeypatch, capsys, "upscale", name, film.with_name("out.mp4")).startswith(f"{name}: ")
    assert failed(monkeypatch, capsys, "evaluate", name, name).startswith(f"{name}: ")


def test_a_name_as_long_as_names_may_be_is_written(film: Path, tiny_fastreal: Path, monkeypatch: Monkey) -> None:
    target = film.with_name("x" * 251 + ".mp4")
    succeeded(monkeypatch, "upscale", film, target, "--model-path", tiny_fastreal)
    assert decode(target)[0].num_frames == 2


def test_names_are_taken_for_files_whatever_is_in_them(film: Path, tiny_fastreal: Path, monkeypatch: Monkey) -> None:
    monkeypatch.chdir(film.parent)
    odd = ("http:x.mp4", "concat:a|b.mp4", "x%d%.mp4", "\udcff\udce9.mp4")
    for name, target in zip(odd, (*odd[1:], "pipe:1.mp4"), strict=True):
        shutil.copy(film, name)
        Path(target).unlink(missing_ok=True)
        succeeded(monkeypatch, "upscale", "--model-path", tiny_fastreal, name, target)
        shutil.copy(target, "readable.mp4")
        after, _ = decode(Path("readable.mp4"))
        assert (after.width, after.num_frames) == (256, 2)
    # The sound comes from ffmpeg's own reading of the name.
    assert ffmpeg("-i", "readable.mp4", "-map", "0:a", "-f", "framecrc", "-").count("\n") > 1


def test_numbers_beyond_64_bits_are_one_line(film: Path, monkeypatch: Monkey, capsys: Capsys) -> None:
    huge = "99999999999999999999"
    said = failed(monkeypatch, capsys, "upscale", film, film.with_name("out.mp4"), "--arg", f"segment={huge}", code=2)
    assert huge in said


def script(folder: Path, text: str, monkeypatch: Monkey) -> None:
    """Make ``text`` the ffmpeg on the path."""
    folder.mkdir()
    path = folder / "ffmpeg"
    path.write_text(text)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_an_ffmpeg_that_cannot_be_run_is_one_line(
    tmp_path: Path, film: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    script(tmp_path / "bin", "neither a program nor a script", monkeypatch)
    said = failed(monkeypatch, capsys, "upscale", film, tmp_path / "out.mp4", "--model-path", tiny_fastreal)
    assert said == f"{tmp_path / 'bin' / 'ffmpeg'}: Exec format error"


def test_an_ffmpeg_that_succeeds_without_a_file_is_an_error(
    tmp_path: Path, film: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    script(tmp_path / "bin", "#!/bin/sh\ncat > /dev/null\n", monkeypatch)
    said = failed(monkeypatch, capsys, "upscale", film, tmp_path / "out.mp4", "--model-path", tiny_fastreal)
    assert said == f"{tmp_path / 'out.mp4'}: nothing was written"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "in.mp4"]


def test_a_target_that_becomes_a_folder_meanwhile_is_one_line_and_costs_no_frame(
    tmp_path: Path, film: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    target = tmp_path / "out.mkv"
    encode = work.encode

    def late(*arguments: object, **options: object) -> object:
        (target / "something").mkdir(parents=True, exist_ok=True)
        return encode(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(work, "encode", late)
    command = ("upscale", film, target, "--model-path", tiny_fastreal)
    assert failed(monkeypatch, capsys, *command) == f"{target} is a folder; give the name of a file"
    assert [path.name for path in target.iterdir()] == ["something"]
    shutil.rmtree(target)
    monkeypatch.setattr(work, "encode", None)  # the finished part is taken as it is
    succeeded(monkeypatch, *command)
    assert decode(target)[0].num_frames == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mkv"]


def test_an_interruption_before_the_command_is_loaded_is_no_traceback() -> None:
    code = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "vsvsr.cli":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # as it is in a shell's foreground
sys.meta_path.insert(0, Interrupting())
from vsvsr.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
    (program,) = importlib.metadata.entry_points(group="console_scripts", name="vsvsr")
    assert program.value == "vsvsr.__main__:main"


def test_links_are_followed(tmp_path: Path, film: Path, tiny_fastreal: Path, monkeypatch: Monkey) -> None:
    (tmp_path / "far").mkdir()
    link, film_of_link = tmp_path / "link.mp4", tmp_path / "far" / "film.mp4"
    link.symlink_to("far/film.mp4")
    for extra in ((), ("-y",)):  # at first the link leads to nothing yet
        succeeded(monkeypatch, "upscale", film, link, "--model-path", tiny_fastreal, *extra)
        assert link.is_symlink()
        assert decode(film_of_link)[0].num_frames == 2
        assert [path.name for path in film_of_link.parent.iterdir()] == ["film.mp4"]


def test_a_circle_of_links_is_one_line(tmp_path: Path, film: Path, monkeypatch: Monkey, capsys: Capsys) -> None:
    circle = tmp_path / "circle.mp4"
    circle.symlink_to("circle.mp4")
    assert failed(monkeypatch, capsys, "upscale", film, circle).startswith(f"{circle}: Too many levels of symbolic")
    with pytest.raises(UserError, match=f"^{circle}: Too many levels of symbolic"):
        check_target(circle)


@pytest.mark.parametrize(
    ("name", "options"),
    [("in.mkv", ()), ("in.mp4", ("-movflags", "+faststart")), ("in.avi", ("-an",)), ("in.flv", ())],
)
def test_a_truncated_film_is_written_as_far_as_it_goes_and_is_an_error(
    tmp_path: Path,
    tiny_fastreal: Path,
    monkeypatch: Monkey,
    capsys: Capsys,
    name: str,
    options: tuple[str, ...],
) -> None:
    whole, source, target = tmp_path / f"whole_{name}", tmp_path / name, tmp_path / "out.mkv"
    small(whole, frames=24, options=("-g", "1", *options))
    source.write_bytes(whole.read_bytes()[: whole.stat().st_size * 7 // 10])
    said = failed(monkeypatch, capsys, "upscale", source, target, "--model-path", tiny_fastreal)
    assert said.startswith(f"{source} is truncated: ")
    count = decode(target)[0].num_frames
    assert 5 < count < 24
    assert said.endswith(f"the {count} frames that are in it are in {target}")
    # A part that was asked for and is there is no error, nor is a whole file.
    succeeded(monkeypatch, "upscale", source, target, "--model-path", tiny_fastreal, "-y", "--end", "2")
    succeeded(monkeypatch, "upscale", whole, target, "--model-path", tiny_fastreal, "-y")


def test_a_turned_film_keeps_its_aspect(tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey) -> None:
    flat = small(tmp_path / "flat.mp4", vf="setsar=16/11", frames=2)
    ffmpeg("-display_rotation:v:0", "90", "-i", flat, "-c", "copy", tmp_path / "in.mp4")
    succeeded(monkeypatch, "upscale", tmp_path / "in.mp4", tmp_path / "out.mp4", "--model-path", tiny_fastreal)
    clip, _ = decode(tmp_path / "out.mp4")
    props = clip.get_frame(0).props
    assert (clip.width, clip.height) == (144, 256)
    assert Fraction(props["_SARNum"], props["_SARDen"]) == Fraction(11, 16)


def test_output_that_nobody_can_take_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vsvsr", "weights", "list"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, "vsvsr: No space left on device\n")


def test_what_is_written_whole_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("before")
    with suppress(RuntimeError), written_whole(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert target.read_text() == "before"
    with written_whole(target) as path:
        path.write_text("after")
        assert target.read_text() == "before"
    assert target.read_text() == "after"
    assert list(tmp_path.iterdir()) == [target]


def begun(folder: Path, source: Path, weights: Path, **options: object) -> "subprocess.Popen[str]":
    """An upscaling that has begun to write into ``folder``."""
    folder.mkdir()
    command = [sys.executable, "-m", "vsvsr", "upscale", source, folder / "out.mp4", "--model-path", weights]
    process = subprocess.Popen(command, text=True, **{"stderr": subprocess.PIPE, **options})  # type: ignore[call-overload]
    deadline = time.monotonic() + 120
    while not any(path.suffix == ".mp4" for path in folder.rglob("*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def complaints(said: str) -> list[str]:
    """The lines that are no progress; on a slow machine indexing is progress, too."""
    return [line for line in said.splitlines() if "frames" not in line and "indexing" not in line]


def children(process: "subprocess.Popen[str]") -> list[int]:
    """The processes that it has started and that still run: ffmpeg."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(number) for number in listed.stdout.split()]


@pytest.mark.parametrize(
    "sent",
    [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP], [signal.SIGINT] * 5, [signal.SIGTERM, signal.SIGINT]],
)
def test_a_signal_leaves_neither_files_nor_processes_behind(
    tmp_path: Path, tiny_fastreal: Path, sent: list[signal.Signals]
) -> None:
    source, folder = small(tmp_path / "in.mp4", vf="scale=160:90", frames=100), tmp_path / "out"
    process = begun(folder, source, tiny_fastreal)
    started = children(process)
    assert len(started) > 0
    # A terminal's Ctrl-C is for this command alone: ffmpeg would finish the half file.
    assert os.getsid(process.pid) not in map(os.getsid, started)
    for number in sent:
        process.send_signal(number)
    process.wait(timeout=60)
    assert [number for number in started if Path(f"/proc/{number}").exists()] == []  # they were waited for
    _, said = process.communicate()
    assert process.returncode == 130
    assert complaints(said) == ["vsvsr: interrupted"]
    assert list(folder.iterdir()) == []


def test_a_signal_while_a_signal_is_obeyed_changes_nothing() -> None:
    code = """
import os, signal
import vsvsr.cli
from vsvsr import files

def undo():
    os.write(2, b"undone\\n")
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)

files.undo_everything = undo
signal.signal(signal.SIGINT, vsvsr.cli._stop)
signal.signal(signal.SIGTERM, vsvsr.cli._stop)
os.kill(os.getpid(), signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "undone\nvsvsr: interrupted\n")


def test_what_takes_long_to_begin_does_not_hold_up_a_signal() -> None:
    code = """
import threading
from vsvsr import files

files._LONGEST_BEGIN = 0.1
begun, go_on = threading.Event(), threading.Event()

def begin():
    begun.set()
    go_on.wait(60)

def use():
    with files.undone(begin, lambda thing: None):
        pass

thread = threading.Thread(target=use)
with files.undone(lambda: "here", print):
    thread.start()
    begun.wait()
    files.undo_everything()
    go_on.set()
    thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "here\nhere\n", "")


def test_a_closed_terminal_leaves_nothing_behind(tmp_path: Path, tiny_fastreal: Path) -> None:
    source, folder = small(tmp_path / "in.mp4", vf="scale=160:90", frames=100), tmp_path / "out"
    ours, theirs = pty.openpty()
    # No bar, which somebody would have to read.
    process = begun(folder, source, tiny_fastreal, stderr=theirs, env={**os.environ, "TERM": "dumb"})
    os.close(theirs)
    os.close(ours)  # from now on writing to it fails
    process.send_signal(signal.SIGHUP)
    process.wait(timeout=60)
    assert process.returncode == 130
    assert list(folder.iterdir()) == []


def test_a_signal_ends_the_command_on_a_terminal_that_takes_no_text(tmp_path: Path, tiny_fastreal: Path) -> None:
    source, folder = small(tmp_path / "in.mp4", vf="scale=160:90", frames=100), tmp_path / "out"
    ours, theirs = pty.openpty()
    process = begun(folder, source, tiny_fastreal, stderr=theirs, env={**os.environ, "TERM": "dumb"})
    os.write(ours, b"\x13")  # Ctrl-S
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    assert process.returncode == 130
    assert list(folder.iterdir()) == []


def test_a_hangup_that_nohup_ignores_is_ignored(tmp_path: Path, tiny_fastreal: Path) -> None:
    source, folder = small(tmp_path / "in.mp4", frames=20), tmp_path / "out"
    process = begun(folder, source, tiny_fastreal, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert decode(folder / "out.mp4")[0].num_frames == 20


def test_a_killed_ffmpeg_is_one_line_and_leaves_nothing(tmp_path: Path, tiny_fastreal: Path) -> None:
    source, folder = tmp_path / "in.mp4", tmp_path / "out"
    ffmpeg("-i", clip_path("bigbuckbunny.mp4"), "-vf", "scale=160:90", source)
    process = begun(folder, source, tiny_fastreal)
    for number in children(process):
        os.kill(number, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert complaints(said) == [f"vsvsr: {folder / 'out.mp4'}: ffmpeg was ended by signal 9"]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_names_are_printed_whatever_the_output_can_hold(tmp_path: Path, film: Path, encoding: str) -> None:
    command = [
        sys.executable,
        "-m",
        "vsvsr",
        "upscale",
        film,
        "日本.mkv",
        "--dry-run",
        "--model",
        "fastreal-compact-x2",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    shown = "日本.mkv".encode(encoding, "backslashreplace")
    assert ended.stdout.startswith(shown + b": ")


def test_figures_that_could_not_be_written_are_an_error_before_the_benchmark(
    tmp_path: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    target = tmp_path / "nowhere" / "speed.json"
    said = failed(monkeypatch, capsys, "benchmark", "--size", "32x32", "--frames", "1", "--json", target)
    assert said == f"{target}: there is no folder {target.parent}"
