"""What is made from the filters' settings: typed functions, stubs, the tables of the documentation."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import vapoursynth as vs

import vsvsr
from vsvsr.filters.generate import COMMAND, ROOT, generated
from vsvsr.filters.registry import FILTERS

SCRIPT = """\
import vapoursynth as vs
import vsvsr

clip = vs.core.std.BlankClip(format=vs.RGBS)
small: vs.VideoNode = vsvsr.FastReal(clip, segment=120, tile=(64, 64), model="fastreal-compact-x2", preview=True)
patch: vs.VideoNode = vsvsr.Skip(clip, budget=0.5, mode="patch", model_path="weights.pth")
plain: vs.VideoNode = vs.core.vsvsr.FastReal(clip, segment=120, tile=[64, 64])
method: vs.VideoNode = clip.vsvsr.Ultra(degradation=0.4, prompt="rain")
large: vs.VideoNode = vsvsr.upscale(clip, preview=True, fp16=True)
other: vs.VideoNode = vsvsr.upscale(clip, "Skip", threshold=0.5, auto_download=True)
steps: int = vsvsr.Stats(small)["steps"]
devices: list[str] = vsvsr.Version()["devices"]
vsvsr.FastReal(clip, segment="120")  # wrong
vsvsr.FastReal(clip, model="fastreal-compact-x3")  # wrong
vsvsr.Skip(clip, mode="tile")  # wrong
vsvsr.MIA(clip, threshold=0.5)  # wrong
vs.core.vsvsr.MIA(clip, threshold=0.5)  # wrong
vs.core.vsvsr.FastReal(clip, tile="small")  # wrong for mypy
vsvsr.upscale(clip, "Skip", segment=5)  # wrong
vsvsr.upscale(clip, "Toy")  # wrong
vsvsr.Stats(small)["step"]  # wrong
"""


def test_the_generated_files_are_what_the_settings_say() -> None:
    for path, text in generated().items():
        assert path.read_text() == text, f"{path.name} is not what the settings say; run: {COMMAND}"
    pages = {ROOT / "docs" / "filters" / f"{name.lower()}.md" for name in FILTERS}
    assert set(generated()) == {ROOT / "vsvsr" / "__init__.py", *pages}
    assert set((ROOT / "docs" / "filters").iterdir()) == pages


@pytest.fixture
def typed(tmp_path: Path) -> Path:
    """SCRIPT in a folder with the stubs of vsstubs and the package's signatures; what else it imports is left out."""
    package = tmp_path / "vsvsr"
    package.mkdir()
    shutil.copy(ROOT / "vsvsr" / "__init__.py", package)
    subprocess.run([sys.executable, "-m", "vsstubs", "--quiet", "-o", tmp_path / "vapoursynth.pyi"], check=True)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return script


def wrong(*marks: str) -> set[int]:
    """Numbers of the lines of SCRIPT that end with one of the marks."""
    return {n for n, line in enumerate(SCRIPT.splitlines(), 1) if line.endswith(marks)}


def test_mypy_knows_every_argument(typed: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--ignore-missing-imports"]
    command += ["--no-error-summary", "--no-incremental", str(typed)]
    environment = {**os.environ, "MYPYPATH": str(typed.parent)}
    done = subprocess.run(command, env=environment, cwd=typed.parent, capture_output=True, text=True, check=False)
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error: " in line}
    assert found == wrong("# wrong", "# wrong for mypy"), done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("node") is None, reason="pyright runs on node")
def test_pyright_knows_every_argument(typed: Path) -> None:
    command = [sys.executable, "-m", "pyright", "--outputjson", str(typed)]
    done = subprocess.run(command, cwd=typed.parent, capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)["generalDiagnostics"]
    errors = {found["range"]["start"]["line"] + 1 for found in told if found["severity"] == "error"}
    assert errors == wrong("# wrong"), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"segment": 10**20}, "segment=100000000000000000000 is not possible; allowed: at most 2147483647"),
        ({"segment": -(10**20)}, "segment=-100000000000000000000 is not possible; allowed: 0 (never restart) or more"),
        ({"segment": float("nan")}, "segment=nan is not possible; allowed: 0 (never restart) or more frames"),
        ({"segment": float("inf")}, "segment=inf is not possible; allowed: 0 (never restart) or more frames"),
        ({"segment": "few"}, "segment='few' is not possible; allowed: 0 (never restart) or more frames"),
        ({"tile": [64, "a"]}, "tile='a' is not possible; allowed: width and height, each 0 (off) or at least 32"),
        ({"tile": []}, "tile=[] is not possible; allowed: width and height, each 0 (off) or at least 32"),
        ({"model": "\ud800"}, "model='\\ud800' is not possible; allowed: text in UTF-8"),
        ({"model_path": "a\ud800"}, "model_path='a\\ud800' is not possible; allowed: an existing file"),
        ({"model_path": 5}, "model_path=5 is not possible; allowed: an existing file"),
    ],
)
def test_a_typed_function_names_an_argument_that_vapoursynth_could_not_pass(
    bikes: vs.VideoNode, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(vs.Error) as caught:
        vsvsr.FastReal(bikes, **arguments)
    assert str(caught.value).startswith(f"FastReal: {message}")
    assert "\n" not in str(caught.value)


def test_a_typed_function_takes_paths_and_leaves_none_to_the_default(bikes: vs.VideoNode, tiny_fastreal: Path) -> None:
    output = vsvsr.FastReal(bikes, model_path=tiny_fastreal, segment=None, device_index=-1)
    with output.get_frame(0) as frame:
        assert (frame.width, frame.height) == (192, 128)
