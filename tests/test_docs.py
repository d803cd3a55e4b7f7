"""README and documentation: every code block is run, every link leads somewhere, the pages are built without warnings.

Scripts and commands run as they are written, on small films with the names that the pages use. Exceptions, each because
the command would take hours or change this environment: training and benchmarks are read by their own parsers, what pip
would install is looked up in the project, and the project's own scripts are looked for.
"""

import functools
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import vapoursynth as vs

from tests.films import ffmpeg, small
from tests.test_bring import mia_state, shrink, ultra_state
from tests.ultra_files import write_base_folder
from vsvsr import weights
from vsvsr.cli.app import _commands, app
from vsvsr.filters.generate import ROOT
from vsvsr.training import __main__ as training
from vsvsr.video.ffmpeg import find_ffmpeg

Monkey = pytest.MonkeyPatch

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.M | re.S)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of the code blocks of a page."""
    return _FENCE.findall(page.read_text())


WITH_CODE = [page for page in PAGES if blocks(page)]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the pages name."""
    folder = tmp_path_factory.mktemp("films")
    small(folder / "in.mkv", vf="scale=64:48")
    small(folder / "holiday.mp4", vf="scale=32:24", frames=4)
    ffmpeg("-i", folder / "in.mkv", "-vf", "scale=256:192", folder / "truth.mkv")
    (folder / "frames").mkdir()
    ffmpeg("-i", folder / "in.mkv", "-frames:v", "2", folder / "frames" / "%04d.png")
    (folder / "run").mkdir()
    (folder / "run" / "best.safetensors").write_bytes(weights.verify("fastreal-compact-x4").read_bytes())
    (folder / "prompts.txt").write_text("0: a\n2: b\n")
    python = [text for language, text in blocks(ROOT / "README.md") if language == "python"]
    (folder / "script.vpy").write_text(python[0])
    return folder


@pytest.fixture
def desk(films: Path, tmp_path: Path, monkeypatch: Monkey) -> Path:
    """A new folder that holds what the pages name, as the working directory."""
    for path in films.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").symlink_to(find_ffmpeg())
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def brought(desk: Path, monkeypatch: Monkey) -> None:
    """The authors' files of MIA and Ultra, of small networks."""
    shrink(monkeypatch)
    monkeypatch.setenv("VSVSR_WEIGHTS_DIR", str(desk / "cache"))
    torch.save(mia_state(), desk / "MIAVSR_REDS_x4.pth")
    torch.save(ultra_state(), desk / "model_UltraVSR.pkl")
    write_base_folder(desk / "stable-diffusion-2-1-base")


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_every_code_block_runs(page: Path, desk: Path, request: pytest.FixtureRequest, monkeypatch: Monkey) -> None:
    if page.stem in ("mia", "ultra"):
        request.getfixturevalue("brought")
    for language, text in blocks(page):
        assert language in ("python", "sh"), f"{page.name}: a block of {language or 'no language'}: {text}"
        if language == "python":
            play(page, text)
        else:
            for line in commands(text):
                run(line, monkeypatch)


def play(page: Path, script: str) -> None:
    """Evaluate a script and ask each of its outputs, or else each of its clips, for two frames."""
    vs.clear_outputs()
    names: dict[str, object] = {"__name__": "__vapoursynth__"}
    exec(compile(script, str(page), "exec"), names)
    clips = [output.clip for output in vs.get_outputs().values() if isinstance(output, vs.VideoOutputTuple)]
    clips = clips or [value for value in names.values() if isinstance(value, vs.VideoNode)]
    assert clips
    for clip in clips:
        for n in (0, 1):
            clip.get_frame(n).close()
    vs.clear_outputs()


def commands(text: str) -> Iterator[str]:
    """The commands of a shell block, with its variables put in."""
    variables: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if len(words) == 1 and (assigned := re.fullmatch(r"(\w+)=(.*)", words[0])):
            variables[assigned[1]] = assigned[2]
        elif words:
            yield functools.reduce(lambda line, name: line.replace(f"${name}", variables[name]), variables, line)


def run(line: str, monkeypatch: Monkey) -> None:
    words = shlex.split(line, comments=True)
    for beginning, function in PROGRAMS.items():
        if words[: len(beginning)] == list(beginning):
            function(words[len(beginning) :], monkeypatch)
            return
    done = subprocess.run(["bash", "-ec", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def run_vsvsr(words: list[str], monkeypatch: Monkey) -> None:
    monkeypatch.setattr(sys, "argv", ["vsvsr", *words])
    assert app() == 0, words


def read_training(words: list[str], monkeypatch: Monkey) -> None:
    """The parser of ``python -m vsvsr.training`` understands the options."""
    for module in training._commands().values():
        monkeypatch.setattr(module, "run", lambda settings: None)
    assert training.main(words) == 0


def look_up(words: list[str], monkeypatch: Monkey) -> None:
    """What pip would install: this project, with extras that it has, or a package from an index."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    command, name = [word for word in words if word != "-e"][:2]  # -e: as it is in the checkout
    assert command == "install"
    own = re.fullmatch(r"(?:vsvsr|\.)(?:\[(.*)\])?", name)
    if own is None:
        assert name in {re.split(r"\W", dependency)[0] for dependency in project["dependencies"]}
    elif own[1]:
        assert set(own[1].split(",")) <= set(project["optional-dependencies"])


def look_for(name: str) -> Callable[[list[str], Monkey], None]:
    def find(words: list[str], monkeypatch: Monkey) -> None:
        path = ROOT / name
        assert path.is_file()
        assert path.stat().st_mode & 0o100

    return find


PROGRAMS: dict[tuple[str, ...], Callable[[list[str], Monkey], None]] = {
    ("vsvsr",): run_vsvsr,
    ("pip",): look_up,
    ("python", "-m", "vsvsr.training"): read_training,
    **{(f"scripts/{name}",): look_for(f"scripts/{name}") for name in ("test", "demo", "build_wheels")},
}


def test_commands_within_the_text_exist() -> None:
    """Those in backticks: subcommands of vsvsr, modules, scripts, extras."""
    text = "\n".join(page.read_text() for page in PAGES)
    commands: Any = typer.main.get_command(_commands)
    known = {*commands.commands, *commands.commands["weights"].commands}
    for name in set(re.findall(r"`vsvsr (?:weights )?(\w+)", text)):
        assert name in known, name
    modules = set(re.findall(r"`python -m ((?:scripts|vsvsr)\.[\w.]*\w)(?!\.?`$)", text)) - {"scripts.bench"}
    assert len(modules) > 4
    for name in modules:
        assert importlib.util.find_spec(name) is not None, name
    for name in set(re.findall(r"`(scripts/\w+)`", text)):
        assert (ROOT / name).exists(), name
    for line in set(re.findall(r"`(pip install [^`]*)`", text)):
        look_up(shlex.split(line)[1:], pytest.MonkeyPatch())


def test_the_links_of_the_readme_lead_to_files() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert len(links) > 10
    assert not [link for link in links if not (ROOT / link).is_file()]


def test_the_documentation_is_built_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {"PATH": str(Path(sys.executable).parent), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    changelog = (tmp_path / "changelog" / "index.html").read_text()
    assert "Keep a Changelog" in changelog
    assert (tmp_path / "assets" / "before_after.jpg").is_file()
    assert "Five places" in (tmp_path / "adding-a-model" / "index.html").read_text()
