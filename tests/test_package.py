"""The package as it is installed: typed functions, and what the plugin registers."""

import importlib.metadata
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import vapoursynth as vs

import vsvsr
from tests.pixels import play
from vsvsr.filters.generate import ROOT
from vsvsr.filters.registry import FILTERS
from vsvsr.models.fastreal import load as load_fastreal
from vsvsr.models.fastreal import save as save_fastreal


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_the_plugin_registers_what_the_registry_declares(name: str) -> None:
    assert getattr(vs.core.vsvsr, name).signature == FILTERS[name].settings.signature()


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_the_typed_function_takes_the_arguments_of_the_filter(name: str) -> None:
    parameters = list(inspect.signature(getattr(vsvsr, name)).parameters)
    registered = [part.split(":")[0] for part in FILTERS[name].settings.signature().split(";") if part]
    assert sorted(parameters) == sorted(registered)


def test_the_typed_functions_call_the_filters(bikes: vs.VideoNode, tiny_fastreal: Path) -> None:
    direct = vs.core.vsvsr.FastReal(bikes[:5], model_path=str(tiny_fastreal), segment=3, warmup=1)
    typed = vsvsr.FastReal(bikes[:5], model_path=str(tiny_fastreal), segment=3, warmup=1)
    assert play(typed) == play(direct)
    assert vsvsr.Stats(typed) == dict(vs.core.vsvsr.Stats(direct))
    assert vsvsr.Version()["version"] == vs.core.vsvsr.Version()["version"]


def test_the_version_is_the_projects_everywhere() -> None:
    installed = importlib.metadata.version("vsvsr")
    assert tuple(map(int, installed.split(".")[:2])) == vs.core.vsvsr.version
    assert vs.core.vsvsr.Version()["version"] == installed
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == installed


def test_what_a_release_tries_needs_no_extra_but_the_command_line() -> None:
    (tried,) = re.findall(r"python -m pytest (.*)", (ROOT / ".github/workflows/release.yml").read_text())
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    there = {re.split(r"[<>=;]", package)[0] for package in extras["cli"]}
    named = {
        re.split(r"[<>=;]", p)[0] for name in ("ultra", "train", "onnx", "cluster", "evaluate") for p in extras[name]
    }
    code = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(named - there)}))
import pytest
sys.exit(pytest.main(["--collect-only", "-q", *{shlex.split(tried)}]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "test_conformance.py" in done.stdout


def test_the_guide_for_contributors_names_files_that_exist_and_every_golden() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = "vsvsr|tests|scripts|triton_kernels|plugins|engine|filters|training"
    named = set(re.findall(rf"`((?:{rooms})/[\w/.]+)`", guide))
    named = {path for path in named if "NAME" not in path}
    assert len(named) > 10
    missing = [path for path in named if not (ROOT / path).exists() and not (ROOT / "vsvsr" / path).exists()]
    assert not missing
    goldens = {path.stem for path in (ROOT / "tests" / "data").iterdir()}
    assert goldens <= set(re.findall(r"^\| `(\w+)` \|", guide, flags=re.M))


def test_signatures_are_made_without_torch() -> None:
    code = "import sys; import vsvsr.filters.signatures as s; s.main(); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith('VSVSR_FILTER("FastReal", "clip:vnode;model:data:opt;')


def test_the_default_weights_are_in_the_package(bikes: vs.VideoNode) -> None:
    with vs.core.vsvsr.FastReal(bikes, device_index=-1).get_frame(0) as frame:
        assert (frame.width, frame.height) == (192, 128)


def test_weights_that_are_not_installed_are_asked_for_with_the_command(
    bikes: vs.VideoNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VSVSR_WEIGHTS_DIR", str(tmp_path))
    with pytest.raises(vs.Error) as caught:
        vs.core.vsvsr.Skip(bikes)
    assert str(caught.value) == (
        "Skip: weights BasicVSR_REDS4 are not installed; run: vsvsr weights install BasicVSR_REDS4"
    )


@pytest.mark.parametrize("name", ["MIA", "Ultra"])
def test_weights_that_users_bring_are_asked_for_with_the_command(
    name: str, bikes: vs.VideoNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VSVSR_WEIGHTS_DIR", str(tmp_path))
    with pytest.raises(vs.Error) as caught:
        getattr(vs.core.vsvsr, name)(bikes)
    told = r"%s: weights \w+ are not here; get [^\n]* linked at github\.com/[^\n]*, then run: vsvsr weights add FILE"
    assert re.fullmatch(told % name, str(caught.value))


def test_weights_say_how_often_their_recurrence_restarts(
    bikes: vs.VideoNode, tiny_fastreal: Path, tmp_path: Path
) -> None:
    network = load_fastreal(tiny_fastreal).network
    save_fastreal(network, tmp_path / "own.safetensors", {"restarts": '{"segment": 4, "warmup": 2}'})

    def played(path: Path, **arguments: int) -> dict[int, str]:
        return play(vs.core.vsvsr.FastReal(bikes[:10], model_path=str(path), **arguments))

    own = tmp_path / "own.safetensors"
    assert played(own) == played(tiny_fastreal, segment=4, warmup=2) != played(tiny_fastreal)
    assert played(own, segment=5) == played(tiny_fastreal, segment=5, warmup=2)
    assert played(own, segment=1) == played(tiny_fastreal, segment=1, warmup=1)
    assert played(own, segment=0) == played(tiny_fastreal, segment=0)
    with pytest.raises(vs.Error, match=r"^FastReal: warmup=5 is not possible; allowed: at most 4, the segment"):
        played(own, warmup=5)
    for damaged in ('{"segment": 0}', '{"segment": 4}', '{"length": 4}', "4"):
        save_fastreal(network, tmp_path / "damaged.safetensors", {"restarts": damaged})
        with pytest.raises(vs.Error, match=r"^FastReal: .*damaged\.safetensors: [^\n]+$"):
            played(tmp_path / "damaged.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"segment": -1}, "segment=-1 is not possible; allowed: 0 (never restart) or more"),
        ({"warmup": -1}, "warmup=-1 is not possible; allowed: 0 or more"),
        ({"segment": 10, "warmup": 11}, "warmup=11 is not possible; allowed: at most segment=10"),
        ({"state_cache": -5}, "state_cache=-5 is not possible; allowed: 0 or more megabytes"),
        ({"preview": 2}, "preview=2 is not possible; allowed: 0 or 1"),
        (
            {"model": "nothing"},
            "model='nothing' is not possible; allowed: fastreal-x4 or fastreal-compact-x4 or fastreal-faithful-x4 or "
            "fastreal-x2 or fastreal-compact-x2",
        ),
        (
            {"model": "BasicVSR_REDS4"},
            "model='BasicVSR_REDS4' is not possible; "
            "allowed: fastreal-x4 or fastreal-compact-x4 or fastreal-faithful-x4 or fastreal-x2 or fastreal-compact-x2",
        ),
    ],
)
def test_fastreal_refuses_a_wrong_argument_in_one_line(
    bikes: vs.VideoNode, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(vs.Error) as caught:
        vs.core.vsvsr.FastReal(bikes, **arguments)
    assert str(caught.value).startswith(f"FastReal: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"length": -1},
            "length=-1 is not possible; allowed: 0 (the whole clip, or scene, in memory at once) or more frames",
        ),
        ({"overlap": -1}, "overlap=-1 is not possible; allowed: 0 or more frames"),
        ({"threshold": 1.5}, "threshold=1.5 is not possible; allowed: 0 to 1"),
        ({"budget": -0.1}, "budget=-0.1 is not possible; allowed: 0 to 1"),
        (
            {"budget": 0.5, "threshold": 0.5},
            "budget=0.5 is not possible; allowed: either threshold or budget, not both",
        ),
        ({"mode": "tile"}, "mode='tile' is not possible; allowed: frame or patch"),
    ],
)
def test_skip_refuses_a_wrong_argument_in_one_line(
    bikes: vs.VideoNode, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(vs.Error) as caught:
        vs.core.vsvsr.Skip(bikes, **arguments)
    assert str(caught.value) == f"Skip: {message}"
