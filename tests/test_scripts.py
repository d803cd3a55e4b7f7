"""Benchmarks and other scripts: all can be imported and say how they are used; the harness times and records."""

import csv
import importlib
import os
import pkgutil
import sys
from pathlib import Path

import pytest

import scripts
from scripts.bench import fastreal_network, harness

SHARED = ("scripts.bench.harness", "scripts.simulated_gpu")
"""What scripts import."""
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(scripts.__path__, "scripts.")
    if not module.ispkg and module.name not in SHARED
)
BENCHMARKS = [name for name in MODULES if name.startswith("scripts.bench.")]


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    importlib.import_module(name).main()


@pytest.mark.parametrize("name", MODULES)
def test_every_script_is_a_module_with_a_docstring_and_a_main(name: str) -> None:
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip()
    assert callable(module.main)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_explains_its_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(name, monkeypatch, "--help")
    assert exit_.value.code == 0
    assert {"--csv", "--threads"} <= set(capsys.readouterr().out.split())


def test_a_ratio_is_the_median_of_the_ratios_within_the_rounds() -> None:
    # The second round ran on a machine ten times as slow; the ratio of the medians would be 1.5.
    rounds = harness.Rounds({"a": [2.0, 20.0, 3.0], "b": [1.0, 10.0, 2.0]})
    assert rounds.ratio("a", to="b") == 2.0
    assert (rounds.median("a"), rounds.best("b")) == (3.0, 1.0)


def test_forms_run_in_turn_and_warm_ups_do_not_count() -> None:
    calls: list[str] = []

    def measure(name: str) -> harness.Measure:
        return lambda: calls.append(name) or float(len(calls))

    rounds = harness.in_turn({"a": measure("a"), "b": measure("b")}, 2, warmups=1)
    assert calls == ["a", "b"] * 3
    assert rounds.seconds == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_a_fresh_process_has_the_environment_it_is_given_and_this_one_keeps_its_own() -> None:
    assert harness.in_fresh_process(os.getenv, "VSVSR_TEST", environment={"VSVSR_TEST": "7"}) == "7"
    assert "VSVSR_TEST" not in os.environ


def test_the_peak_of_a_fresh_process_is_its_own() -> None:
    before = harness.peak_megabytes()
    ballast = bytearray(400_000_000)
    ballast[::4096] = bytes(b"1" * len(ballast[::4096]))  # so that all of it is resident
    assert harness.peak_megabytes() > before
    assert 50 < harness.in_fresh_process(harness.peak_megabytes) < harness.peak_megabytes() - 200


def test_figures_are_printed_and_appended_with_date_and_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.csv"
    for value in (1.5, 2.5):
        harness.Results("example", path).add("320x180", {"ms": value, "ratio": 2 * value})
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["quantity"], float(row["value"])) for row in rows] == [
        ("320x180", "ms", 1.5),
        ("320x180", "ratio", 3.0),
        ("320x180", "ms", 2.5),
        ("320x180", "ratio", 5.0),
    ]
    assert all(row["benchmark"] == "example" and row["machine"] == harness.machine() for row in rows)
    assert all(row["date"].startswith("20") for row in rows)
    assert [line.split() for line in capsys.readouterr().out.splitlines()[2:4]] == [
        ["ms", "ratio"],
        ["320x180", "1.5", "3"],
    ]


def test_fastreal_is_compared_with_the_srvgg_shape(capsys: pytest.CaptureFixture[str]) -> None:
    fastreal_network.compare(harness.Results("fastreal_network", None), 1, (16, 16))
    lines = capsys.readouterr().out.splitlines()
    (peer,) = (line.split()[-3:] for line in lines if line.startswith(fastreal_network.PEER))
    (step,) = (line.split()[-3:] for line in lines if line.startswith("compact, whole step"))
    assert float(peer[1]) == 1.0
    assert all(float(value) > 0 for value in (*peer, *step))
