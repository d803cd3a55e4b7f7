"""The command line on real files: real ffmpeg, real core, the native plugin, a very small network."""

import importlib.metadata
import importlib.util
import itertools
import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import vapoursynth as vs

from tests.cases import GPUOf
from tests.clips import clip_path
from tests.films import decode, ffmpeg, small
from vsvsr.cli import doctor
from vsvsr.cli.app import app
from vsvsr.engine.device import GPU
from vsvsr.filters.registry import FILTERS
from vsvsr.video.source import open_video

TAGGED = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=limited"


def tags(clip: vs.VideoNode) -> dict[str, int]:
    props = clip.get_frame(0).props
    names = ("_Matrix", "_Transfer", "_Primaries", "_Range", "_ChromaLocation")
    return {name: int(props[name]) for name in names if name in props}


def planes(clip: vs.VideoNode) -> list[list[np.ndarray]]:
    return [[np.asarray(frame[plane]).copy() for plane in range(clip.format.num_planes)] for frame in clip.frames()]


def packets(path: Path) -> dict[int, list[tuple[Fraction, int, str]]]:
    """Of every stream: time in seconds, size and checksum of each packet, ordered by time."""
    text = ffmpeg("-copyts", "-i", path, "-map", "0", "-c", "copy", "-f", "framecrc", "-").splitlines()
    units = {int(line[4]): Fraction(line.split(": ")[1]) for line in text if line.startswith("#tb")}
    rows = [[cell.strip() for cell in line.split(",")] for line in text if not line.startswith("#")]
    found: dict[int, list[tuple[Fraction, int, str]]] = {stream: [] for stream in units}
    for stream, _, pts, _, size, checksum, *_ in rows:
        found[int(stream)].append((int(pts) * units[int(stream)], int(size), checksum))
    return {stream: sorted(of_stream) for stream, of_stream in found.items()}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["vsvsr", *map(str, arguments)])
    return app()


def test_a_video_comes_out_four_times_as_large_with_its_sound_its_times_and_its_colours(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small(tmp_path / "in.mp4", vf=TAGGED)
    target = tmp_path / "out.mp4"
    assert run(monkeypatch, "upscale", source, target, "--model-path", tiny_fastreal) == 0
    before, times = decode(source)
    after, new_times = decode(target)
    assert (after.width, after.height, after.num_frames) == (256, 144, 8)
    assert after.format.id == before.format.id
    assert new_times == times
    assert tags(after) == tags(before) == {
        "_Matrix": 1, "_Transfer": 1, "_Primaries": 1, "_Range": 0, "_ChromaLocation": 0,
    }  # fmt: skip
    assert packets(target)[1] == packets(source)[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


@pytest.mark.parametrize(
    ("vf", "matrix", "transfer", "full_range"),
    [
        (f"{TAGGED},format=yuv420p", 1, 1, 0),
        ("format=yuv420p,setparams=colorspace=smpte170m:color_trc=smpte170m:range=limited", 6, 6, 0),
        ("scale=out_range=full,format=yuvj420p,setparams=colorspace=bt470bg", 5, 2, 1),
        (f"{TAGGED},format=yuv444p", 1, 1, 0),
        (f"{TAGGED},format=yuv422p10", 1, 1, 0),
        ("format=yuv420p10,setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc=smpte2084", 9, 16, 0),
        ("format=gray,setparams=colorspace=bt709", 1, 2, 1),
    ],
)
def test_the_pixels_are_those_of_the_filter_between_two_conversions(
    tmp_path: Path,
    tiny_fastreal: Path,
    monkeypatch: pytest.MonkeyPatch,
    vf: str,
    matrix: int,
    transfer: int,
    full_range: int,
) -> None:
    source = small(tmp_path / "in.mkv", vf=vf, frames=3)
    target = tmp_path / "out.mkv"
    lossless = ("--encoder-option", "x264-params=qp=0")
    assert run(monkeypatch, "upscale", source, target, *lossless, "--model-path", tiny_fastreal) == 0
    decoded, _ = decode(source)
    rgb = decoded.resize.Bicubic(format=vs.RGBS, matrix_in=matrix, range_in_s="full" if full_range else "limited")
    larger = vs.core.vsvsr.FastReal(rgb, model_path=str(tiny_fastreal))
    expected = larger.resize.Bicubic(
        format=decoded.format.id, matrix=matrix, range_s="full" if full_range else "limited"
    )
    result, _ = decode(target)
    assert result.format.id == decoded.format.id
    for got, wanted in zip(planes(result), planes(expected), strict=True):
        for plane, reference in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(plane, reference)
    written = tags(result)
    assert (written["_Matrix"], written["_Transfer"], written["_Range"]) == (matrix, transfer, full_range)


def test_timestamps_of_a_variable_frame_rate_are_kept(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small(tmp_path / "in.mp4", vf="select='not(eq(mod(n,3),1))'")
    _, times = decode(source)
    assert {after - before for before, after in itertools.pairwise(times)} == {
        Fraction(1, 25),
        Fraction(2, 25),
    }
    for name in ("out.mp4", "out.mkv"):
        assert run(monkeypatch, "upscale", source, tmp_path / name, "--model-path", tiny_fastreal) == 0
        assert decode(tmp_path / name)[1] == times


def test_sound_and_picture_stay_together_when_a_file_does_not_begin_at_zero(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small(tmp_path / "in.ts", vf="setpts=PTS+0.2/TB")
    target = tmp_path / "out.mkv"
    assert run(monkeypatch, "upscale", source, target, "--model-path", tiny_fastreal) == 0
    before, after = packets(source), packets(target)
    assert before[0][0][0] > 1  # MPEG-TS begins late
    offsets = [streams[0][0][0] - streams[1][0][0] for streams in (before, after)]
    assert abs(offsets[1] - offsets[0]) <= Fraction(1, 1000)  # Matroska counts milliseconds
    assert offsets[0] > Fraction(1, 10)


def test_a_part_has_the_pixels_of_the_whole(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small(tmp_path / "in.mp4")
    same = ("--encoder", "ffv1", "--model-path", tiny_fastreal)
    assert run(monkeypatch, "upscale", source, tmp_path / "whole.mkv", *same) == 0
    assert run(monkeypatch, "upscale", source, tmp_path / "part.mkv", *same, "--start", "3", "--end", "6") == 0
    whole, part = planes(decode(tmp_path / "whole.mkv")[0]), planes(decode(tmp_path / "part.mkv")[0])
    assert len(part) == 3
    picture, sound = packets(tmp_path / "part.mkv").values()
    assert picture[0][0] == 0
    assert 0 <= sound[0][0] < Fraction(1, 40)
    for got, wanted in zip(part, whole[3:6], strict=True):
        for plane, reference in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(plane, reference)


@pytest.mark.parametrize(("size", "matrix"), [("720:576", 6), ("1024:576", 6), ("1280:720", 1), ("640:640", 1)])
def test_untagged_video_is_read_as_players_read_it(tmp_path: Path, size: str, matrix: int) -> None:
    source = small(tmp_path / "in.mp4", vf=f"scale={size}", frames=1)
    assert open_video(source, lambda _: None).colour.matrix == matrix


def test_rgb_becomes_what_every_player_shows(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.gif"
    ffmpeg("-i", clip_path("bigbuckbunny.mp4"), "-vf", "scale=64:36", "-frames:v", "3", source)
    target = tmp_path / "out.mp4"
    assert run(monkeypatch, "upscale", source, target, "--model-path", tiny_fastreal) == 0
    after, _ = decode(target)
    assert after.format.id == vs.YUV420P8
    assert (tags(after)["_Matrix"], tags(after)["_Range"]) == (1, 0)


def test_aspect_ratio_is_kept(tmp_path: Path, tiny_fastreal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small(tmp_path / "in.mp4", vf="setsar=16/11", frames=2)
    assert run(monkeypatch, "upscale", source, tmp_path / "out.mp4", "--model-path", tiny_fastreal) == 0
    props = decode(tmp_path / "out.mp4")[0].get_frame(0).props
    assert (props["_SARNum"], props["_SARDen"]) == (16, 11)


def test_an_interruption_while_a_file_is_indexed_is_obeyed_at_once(tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    ffmpeg("-stream_loop", "19", "-i", clip_path("bigbuckbunny.mp4"), "-c", "copy", source)
    command = [sys.executable, "-m", "vsvsr", "upscale", source, tmp_path / "out.mp4"]
    shown = {**os.environ, "FORCE_COLOR": "1"}  # rich shows progress as on a terminal
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=shown)
    assert process.stderr is not None
    while "indexing" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("vsvsr: interrupted\n")
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ("missing.mp4 out.mp4", 1, "missing.mp4 is not a file"),
        ("text.mp4 out.mp4", 1, "text.mp4 holds no video that can be read: Couldn't open '"),
        ("sound.wav out.mp4", 1, "sound.wav holds no video that can be read: Invalid track index"),
        (
            "interlaced.mkv out.mp4",
            1,
            "interlaced.mkv is interlaced; deinterlace it first: ffmpeg -i interlaced.mkv -vf bwdif DEINTERLACED.mkv",
        ),
        ("in.mp4 in.mp4", 1, "in.mp4 is the input; choose another name"),
        ("in.mp4 text.mp4", 1, "text.mp4 exists; choose another name or give --overwrite"),
        ("in.mp4 nowhere/out.mp4", 1, "nowhere/out.mp4: there is no folder nowhere"),
        ("in.mp4 out.mp4 --encoder nonsense", 1, "out.mp4: Unknown encoder 'nonsense'"),
        ("in.mp4 out.mp4 --model nonsense", 1, "FastReal: "),
        ("in.mp4 out.mp4 --filter Bicubic", 2, "--filter Bicubic: the filters are FastReal"),
        ("in.mp4 out.mp4 --arg sharpness=1", 2, "sharpness=1: the arguments of FastReal are model, model_path, "),
        ("in.mp4 out.mp4 --arg segment", 2, "segment: write key=value"),
        ("in.mp4 out.mp4 --arg warmup=few", 2, "warmup=few: 'few' is not a whole number"),
        (
            "in.mp4 out.mp4 --segment 99999999999999999999",
            2,
            "FastReal: segment=99999999999999999999 is not possible; allowed: at most 2147483647",
        ),
        ("in.mp4 out.mp4 --arg preview=2", 2, "FastReal: preview=2 is not possible; allowed: 0 or 1"),
        ("in.mp4 out.mp4 --tile 64", 2, "FastReal: tile=[64] is not possible; allowed: width and height, each 0 (off)"),
        ("in.mp4 out.mp4 --model-path nowhere.pth", 2, "FastReal: model_path='nowhere.pth' is not possible; allowed: "),
        ("in.mp4 out.mp4 --filter Skip --arg threshold=nan", 2, "Skip: threshold=nan is not possible; allowed: 0 to 1"),
        ("in.mp4 out.mp4 --tile 64x64", 2, "tile=64x64: '64x64' is not a whole number or several, separated by commas"),
        ("in.mp4 out_%d.png --job j", 2, "out_%d.png: pictures are made in one go; leave out --job and --keep-job"),
        ("in.mp4 out.gif --keep-job", 2, "out.gif: pictures are made in one go; leave out --job and --keep-job"),
        ("in.mp4 out.mp4 --fps 25", 1, "in.mp4 says itself when its frames are shown; frames a second are for folders"),
        ("in.mp4 out.mp4 --fps 0", 2, "--fps 0: write frames a second, as 25 or 24000/1001"),
        ("in.mp4 out.mp4 --fps 24/0", 2, "--fps 24/0: write frames a second, as 25 or 24000/1001"),
        ("in.mp4 out.mp4 --start 2", 2, "frames 2 to 2: in.mp4 has 2"),
        ("in.mp4 out.mp4 --crf best", 2, "Invalid value for '--crf': "),
        ("in.mp4 out.mp4 --nonsense", 2, "No such option: --nonsense"),
        ("in.mp4", 2, "Missing argument 'OUT'."),
    ],
)
def test_what_cannot_work_is_said_in_one_line(
    tmp_path: Path,
    tiny_fastreal: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    code: int,
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    small(Path("in.mp4"), frames=2)
    Path("text.mp4").write_text("not a film")
    if "sound" in arguments:
        ffmpeg("-i", clip_path("bigbuckbunny.mp4"), "-vn", "-t", "0.1", "sound.wav")
    if "interlaced" in arguments:
        small(Path("interlaced.mkv"), vf="scale=64:64,setfield=tff", options=("-flags", "+ilme+ildct"), frames=2)
    present = sorted(tmp_path.iterdir())
    extra = () if "--model" in arguments else ("--model-path", tiny_fastreal)
    assert run(monkeypatch, "upscale", *arguments.split(), *extra) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"vsvsr: {line}")
    assert said.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == present


def test_the_help_of_upscale_names_every_argument_of_every_filter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "upscale", "--help") == 0
    options, _, listed = " ".join(capsys.readouterr().out.split()).partition("Arguments for --arg:")
    for name, definition in FILTERS.items():
        own = listed.partition(f" {name} ")[2]
        for argument in definition.settings.arguments():
            described = f"{argument.name} {argument.meaning[0].upper()}{argument.meaning[1:]};"
            option = f"--{argument.name.removesuffix('_index').replace('_', '-')} "
            assert described in own or described in listed.partition(f" {next(iter(FILTERS))} ")[0] or option in options
    assert "state_cache Memory for kept states, which make seeks faster and change no pixel; 0 or more mega" in listed


def test_a_weights_file_whose_name_is_not_utf_8_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = Path(os.fsdecode(os.fsencode(tmp_path) + b"/w\xff.safetensors"))
    weights.write_bytes(b"no tensors here")
    source = small(tmp_path / "in.mp4", frames=2)
    assert run(monkeypatch, "upscale", source, tmp_path / "out.mp4", "--model-path", weights) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{tmp_path}/w\\udcff.safetensors is " in said


def test_the_doctor_finds_a_sound_installation_sound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(monkeypatch, "doctor")
    report = capsys.readouterr().out
    assert code == 0, report
    for subject in ("python", "vapoursynth", "torch", "plugin", "source filter", "vspipe", "ffmpeg", "Ultra"):
        assert f"\nok   {subject} " in f"\n{report}"


@pytest.mark.parametrize(
    ("problem", "capability", "words"),
    [
        (None, (8, 0), "they run"),
        ("RuntimeError: Failed to find C compiler", (8, 0), "Failed to find C compiler; PyTorch runs in their place"),
        (None, (7, 5), "compute capability 8.0 or newer; PyTorch runs in their place"),
    ],
)
def test_the_doctor_says_whether_the_fused_kernels_run_and_what_is_missing(
    problem: str | None, capability: tuple[int, int], words: str, gpu_of: GPUOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_of(capability)
    monkeypatch.setattr("vsvsr.ops.dispatch.launch_problem", lambda device: problem)
    monkeypatch.setattr("vsvsr.engine.device.gpus", lambda: iter([GPU(0, "NVIDIA Pretended", None)]))
    properties = SimpleNamespace(total_memory=24 * 2**30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    _, device, kernels = doctor._torch()
    assert device.state == "0: NVIDIA Pretended, 24.0 GiB"
    assert kernels.subject == "kernels on 0"
    assert words in kernels.state
    assert ("missing: a C compiler" in kernels.state) is (problem is not None)


def test_the_doctor_names_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsvsr.engine.device.gpus", lambda: iter([GPU(0, "", "GPU 0 cannot be used: too old")]))
    _, device = doctor._torch()
    assert device.state == "GPU 0 cannot be used: too old"
    assert device.remedy is not None


def test_the_doctor_says_what_ultra_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    (installed,) = doctor._optional_packages()
    assert installed.state.startswith(f"diffusers {importlib.metadata.version('diffusers')}, transformers ")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (absent,) = doctor._optional_packages()
    # No fault of the installation: the other filters work without.
    assert absent.remedy is None
    assert absent.state == (
        'diffusers and transformers not installed; only Ultra needs them: pip install "vsvsr[ultra]"'
    )


def test_the_doctor_names_what_is_broken_and_what_mends_it(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.99: no such file')\n")
    # An unconfigured vspipe takes the Python of the PATH; here that has no VapourSynth.
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "vsvsr", "doctor"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert told.returncode == 1
    lines = [line.split(maxsplit=1) for line in told.stdout.splitlines()]
    bad = [(line[1], after[1]) for line, after in itertools.pairwise(lines) if line[0] == "BAD"]
    assert [(state.split()[0], remedy) for state, remedy in bad] == [
        ("torch", "pip install --force-reinstall torch"),
        ("plugin", "once torch is ok: pip install --force-reinstall --no-deps vsvsr"),
        ("vspipe", "vapoursynth config"),
    ]
    assert "libcudart.so.99: no such file" in bad[0][0]
