"""What the plugin costs a script that uses another filter, and what the first call of FastReal is made of.

Processes of their own. Core creation: with the plugin in VapourSynth's folder and without, CPU time, in turn. The first
call: importing torch, importing the rest, loading the network, one frame of 64x48.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import vapoursynth as vs

from scripts.bench import harness

CORE = """
import json, time, sys
import vapoursynth as vs
begun = time.process_time()
vs.core.core.num_threads
took = time.process_time() - begun
print(json.dumps({"seconds": took, "plugin": hasattr(vs.core, "vsvsr"), "torch": "torch" in sys.modules}))
"""

FIRST = """
import json, time
import vapoursynth as vs
core = vs.core
source = core.std.BlankClip(width=64, height=48, format=vs.RGBS, length=2, color=[0.2, 0.5, 0.7])
told, wall, cpu = {}, time.perf_counter(), time.process_time()

def lap(name):
    global wall, cpu
    told[name] = (time.perf_counter() - wall, time.process_time() - cpu)
    wall, cpu = time.perf_counter(), time.process_time()

import torch; lap("import torch")
import vsvsr.bridge; lap("import the rest")
clip = core.vsvsr.FastReal(source, device_index=-1); lap("load the network")
clip.get_frame(0).close(); lap("first frame")
print(json.dumps(told))
"""


def told(code: str, folder: Path | None = None) -> dict[str, object]:
    """What a process of its own prints; with the packages in ``folder`` before all others."""
    environment = {**os.environ, **({"PYTHONPATH": str(folder)} if folder else {})}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def creation(folder: Path, *, plugin: bool) -> harness.Measure:
    """Seconds of CPU time in which a core is created, with VapourSynth alone or with the plugin too."""
    installed = Path(vs.__file__).parent
    shutil.copytree(installed, folder / "vapoursynth", ignore=shutil.ignore_patterns("plugins"))
    if plugin:
        shutil.copytree(installed / "plugins" / "vsvsr", folder / "vapoursynth" / "plugins" / "vsvsr")

    def measure() -> float:
        answer = told(CORE, folder)
        assert (answer["plugin"], answer["torch"]) == (plugin, False)
        return float(str(answer["seconds"]))

    return measure


def compare(results: harness.Results, rounds: int) -> None:
    """Milliseconds of core creation, and of the stages of a first call."""
    with tempfile.TemporaryDirectory() as folder:
        measures = {name: creation(Path(folder, name), plugin=name == "with") for name in ("with", "without")}
        times = harness.in_turn(measures, rounds)
    pairs = zip(times.seconds["with"], times.seconds["without"], strict=True)
    results.add(
        "creation of a core",
        {
            "ms with": times.median("with") * 1e3,
            "ms without": times.median("without") * 1e3,
            "ms more": statistics.median(a - b for a, b in pairs) * 1e3,
        },
    )
    laps = [told(FIRST) for _ in range(max(1, rounds // 4))]
    for stage in laps[0]:
        wall, cpu = (statistics.median(lap[stage][k] for lap in laps) for k in (0, 1))  # type: ignore[index]
        results.add(f"first FastReal: {stage}", {"ms": wall * 1e3, "ms of CPU time": cpu * 1e3})


def main() -> None:
    """The command line."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    compare(harness.Results("startup", arguments.csv), arguments.rounds)


if __name__ == "__main__":
    main()
