"""``vsvsr benchmark`` on the CPU, with real filters."""

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

from vsvsr.cli.app import app
from vsvsr.filters.registry import FILTERS
from vsvsr.jobs.benchmark import SIZES, cases

Monkey = pytest.MonkeyPatch
Capsys = pytest.CaptureFixture[str]


def run(monkeypatch: Monkey, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["vsvsr", "benchmark", "--device", "-1", *map(str, arguments)])
    return app()


def test_every_back_end_is_timed_as_a_whole_and_in_parts(tmp_path: Path, monkeypatch: Monkey, capsys: Capsys) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "speed.json"
    small = ("--size", "32x24", "--frames", "2", "--model", "fastreal-compact-x2")
    assert run(monkeypatch, *small, "--json", path) == 0
    told = json.loads(path.read_text())
    assert [row["backend"] for row in told["rows"]] == ["torch", "onnx"]
    for row in told["rows"]:
        assert (row["model"], row["width"], row["height"], row["half"]) == ("fastreal-compact-x2", 32, 24, False)
        assert row["fps"] > 0
        assert set(row["parts"]) == {"upload", "step", "render", "download", "copy"}
        assert row["parts"]["step"] > row["parts"]["upload"] > 0
        assert (row["memory"], row["problem"]) == (0, "")
    assert told["machine"]["device"] == "cpu"
    assert told["machine"]["versions"]["torch"] == importlib.metadata.version("torch")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[-2:]] == [
        ["fastreal-compact-x2", "32x24", "fp32", backend] for backend in ("torch", "onnx")
    ]
    assert len(lines[-1].split()) == 10


def test_filters_that_look_both_ways_are_timed_as_a_whole(
    tmp_path: Path, monkeypatch: Monkey, skip_weights: Path
) -> None:
    path = tmp_path / "speed.json"
    command = ("--filter", "Skip", "--model", "BasicVSR_REDS4", "--size", "32x24", "--frames", "2", "--json", path)
    assert run(monkeypatch, *command) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["fps"] > 0
    assert row["parts"] == {}


def test_what_cannot_be_made_is_said_and_leaves_the_others_alone(monkeypatch: Monkey, capsys: Capsys) -> None:
    small = ("--frames", "1", "--model", "fastreal-compact-x4", "--size", "10x10")
    assert run(monkeypatch, *small) == 1
    said = capsys.readouterr().out
    assert "fastreal-compact-x4 10x10 fp32 torch: FastReal: the clip is 10x10, the smallest possible is 16x16\n" in said
    assert run(monkeypatch, *small, "--size", "16x16") == 0
    assert " failed " in capsys.readouterr().out


def test_a_gpu_is_timed_in_both_precisions_with_what_is_installed(monkeypatch: Monkey) -> None:
    monkeypatch.setattr("vsvsr.weights.present", lambda row: row.model != "MIA")
    found = list(cases(list(FILTERS), SIZES, on_cpu=False))
    assert {case.filter_name for case in found} == {"FastReal", "Skip", "Ultra"}
    default = [case for case in found if case.model == "fastreal-x4" and case.backend == "torch"]
    assert {(case.width, case.height, case.half) for case in default} == {
        (*size, half) for size in SIZES for half in (False, True)
    }
    assert {case.backend for case in found if case.filter_name == "Skip"} == {"torch"}
    assert not any(case.half for case in cases(list(FILTERS), SIZES, on_cpu=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "big"), "--size big: write WIDTHxHEIGHT, as 1280x720"),
        (("--filter", "Fast"), "--filter Fast: the filters are "),
        (("--model", "none"), "--model: no such weights are here; vsvsr weights list shows them"),
    ],
)
def test_a_wrong_option_is_one_line(
    arguments: tuple[str, str], message: str, monkeypatch: Monkey, capsys: Capsys
) -> None:
    assert run(monkeypatch, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"vsvsr: {message}")
    assert said.count("\n") == 1
