"""A model is added in five places, as CONTRIBUTING.md says, and plays: a toy, in a copy of the sources."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
import vapoursynth as vs
from safetensors.torch import save_file

from vsvsr.filters.generate import ROOT

MODEL = '''
"""A toy: every pixel becomes 2x2 of them, multiplied by a learned number."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vsvsr import weights
from vsvsr.models.common import Write
from vsvsr.models.common.loading import Loaded, build
from vsvsr.models.common.offload import OffloadBuffer


class Toy(nn.Module):
    scale = 2

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def chunk(self, frames: Sequence[Tensor], emit: range, gain: float, *, buffer: OffloadBuffer) -> Iterator[Write]:
        for i in emit:
            yield partial(self.render, frames[i] * gain)

    def render(self, frame: Tensor, planes: Sequence[Tensor]) -> None:
        picture = (frame[0] * self.factor).repeat_interleave(2, 1).repeat_interleave(2, 2)
        for plane, channel in zip(planes, picture, strict=True):
            plane.copy_(channel[: plane.shape[0], : plane.shape[1]])


def load(path: Path) -> Loaded[Toy]:
    network = build(Toy, weights.read_tensors(path)[0], path, "Toy")
    return Loaded(network, network.scale)
'''

FILTER = '''
"""Toy: what a filter needs at least."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from vsvsr.filters.arguments import Argument
from vsvsr.filters.clip import Clip
from vsvsr.filters.settings import ChunkedSettings

if TYPE_CHECKING:
    from vsvsr.filters.session import FilterSession

DEFAULT_MODEL = "toy-x2"


@dataclass(frozen=True, kw_only=True)
class ToySettings(ChunkedSettings):
    """A toy that multiplies."""

    model: Annotated[str, Argument("weights in the package, by name", otherwise=DEFAULT_MODEL)] = ""
    gain: Annotated[float, Argument("what samples are multiplied by", at_least=0, at_most=2)] = 1.0


def create(settings: ToySettings, clip: Clip) -> "FilterSession":
    from functools import partial

    from vsvsr.engine.device import choose_device, compute_type
    from vsvsr.filters.session import open_chunked
    from vsvsr.filters.weights import find_weights
    from vsvsr.models.toy import load

    device = choose_device(settings.device_index)
    dtype = compute_type(clip.format, device, fp16=settings.fp16)
    loaded = load(find_weights("Toy", settings, DEFAULT_MODEL))
    chunks = partial(loaded.place(device, dtype).chunk, gain=settings.gain)
    return open_chunked(chunks, loaded, settings, clip, device, dtype, result_size=0)
'''

# A core without the installed plugin, which has the same name as the copy's.
PLAY = """
import json, random, sys
import numpy as np
import vapoursynth as vs

class Policy(vs.EnvironmentPolicy):
    def on_policy_registered(self, api):
        self.api = api
        self.environment = api.create_environment(int(vs.CoreCreationFlags.DISABLE_AUTO_LOADING))
    def on_policy_cleared(self):
        self.api.destroy_environment(self.environment)
    def get_current_environment(self):
        return self.environment
    def set_environment(self, environment):
        return self.environment

vs.register_policy(Policy())
import vsvsr
core = vs.core.core
core.std.LoadPlugin(sys.argv[1])
ramp = core.std.BlankClip(format=vs.RGBS, width=20, height=16, length=12)
ramp = ramp.std.FrameEval(lambda n: core.std.BlankClip(ramp, color=[n / 12, 0.25, 0.75]))
output = core.vsvsr.Toy(ramp, gain=0.5, length=4, overlap=1)
order = random.Random(1).sample(range(12), 12)
pending = [(n, output.get_frame_async(n)) for n in order]
told = {"size": [output.width, output.height], "frames": len(output), "wrong": []}
for n, future in pending:
    with future.result() as frame, ramp.get_frame(n) as source:
        for plane in range(3):
            expected = (np.asarray(source[plane]) * np.float32(0.5) * np.float32(3)).repeat(2, 0).repeat(2, 1)
            if not np.array_equal(np.asarray(frame[plane]), expected):
                told["wrong"].append(n)
with vsvsr.Toy(ramp, gain=0.5).get_frame(7) as typed, output.get_frame(7) as frame:
    told["typed"] = all(np.array_equal(np.asarray(typed[i]), np.asarray(frame[i])) for i in range(3))
try:
    core.vsvsr.Toy(ramp, gain=3)
except vs.Error as error:
    told["refusal"] = str(error)
print(json.dumps(told))
"""


def contents(root: Path) -> dict[str, str]:
    """The sources of the package with README and documentation, by path, as hashes."""
    below = (path for folder in ("vsvsr", "docs") for path in (root / folder).rglob("*") if path.is_file())
    files = [root / "README.md", *below]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if "__pycache__" not in path.parts
    }


def insert(path: Path, after: str, line: str) -> None:
    text = path.read_text()
    assert text.count(after) == 1, (path, after)
    path.write_text(text.replace(after, after + line))


def add_toy(copy: Path) -> None:
    """The five places."""
    package = copy / "vsvsr"
    (package / "models" / "toy").mkdir()
    (package / "models" / "toy" / "__init__.py").write_text(MODEL.lstrip())
    (package / "filters" / "toy.py").write_text(FILTER.lstrip())
    registry = package / "filters" / "registry.py"
    insert(registry, "from vsvsr.filters import ", "toy, ")
    insert(registry, "FILTERS: dict[str, Filter[Any]] = {\n", '    "Toy": Filter(toy.ToySettings, toy.create),\n')
    weights = package / "weights" / "shipped" / "toy-x2.safetensors"
    save_file({"factor": torch.tensor([3.0])}, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    row = f'    _shipped("toy-x2", "Toy", {weights.stat().st_size}, "{digest}"),\n'
    insert(package / "weights" / "manifest.py", "MANIFEST: tuple[Weights, ...] = (\n", row)
    header = "| filter | network | weights | looks at |\n| --- | --- | --- | --- |\n"
    insert(copy / "README.md", header, "| `core.vsvsr.Toy` | a toy | in the package | a frame |\n")


@pytest.mark.skipif(sys.platform != "linux", reason="builds the plugin with the compiler's usual options on Linux")
def test_a_model_is_added_in_five_places_and_plays(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "vsvsr", copy / "vsvsr", ignore=ignored)
    shutil.copytree(ROOT / "docs", copy / "docs", ignore=ignored)
    shutil.copy(ROOT / "README.md", copy)
    before = contents(copy)
    add_toy(copy)

    # Without the site module, no editable installation comes before the copy.
    paths = os.pathsep.join((str(copy), sysconfig.get_path("purelib")))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}

    def python(*arguments: str | Path) -> str:
        command = [sys.executable, "-S", *map(str, arguments)]
        done = subprocess.run(command, env=environment, cwd=copy, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    python("-m", "vsvsr.filters.generate")
    after = contents(copy)
    touched = {path for path in after if after[path] != before.get(path)}
    assert touched == {
        "README.md",
        "docs/filters/toy.md",  # begun by the generator
        "vsvsr/__init__.py",  # generated
        "vsvsr/filters/registry.py",
        "vsvsr/filters/toy.py",
        "vsvsr/models/toy/__init__.py",
        "vsvsr/weights/manifest.py",
        "vsvsr/weights/shipped/toy-x2.safetensors",
    }
    page = (copy / "docs" / "filters" / "toy.md").read_text()
    assert "| `gain` | 1 | 0 to 2 | what samples are multiplied by |" in page

    generated = tmp_path / "generated"
    generated.mkdir()
    (generated / "filters.inc").write_text(python("-m", "vsvsr.filters.signatures"))
    plugin = tmp_path / "toy.so"
    sources = sorted((ROOT / "plugins" / "src").glob("*.cpp"))
    options = ["-std=c++20", "-shared", "-fPIC", "-DVS_USE_API_41"]
    options += ["-DVSVSR_VERSION_MAJOR=0", "-DVSVSR_VERSION_MINOR=1"]
    options += [f"-I{generated}", f"-I{vs.get_include()}", "-o", str(plugin)]
    subprocess.run([os.environ.get("CXX", "c++"), *options, *map(str, sources), "-ldl"], check=True)
    told = json.loads(python("-c", PLAY, plugin))
    assert told == {
        "size": [40, 32],
        "frames": 12,
        "wrong": [],
        "typed": True,
        "refusal": "Toy: gain=3.0 is not possible; allowed: 0 to 2",
    }
