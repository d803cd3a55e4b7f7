"""What dividing a film into parts costs on one device, and what a second worker gains: `vsvsr upscale` on the CPU.

Overhead: the shipped clip, repeated and at half its size, in parts of five seconds and in one part, on all cores.
Scaling: at its own size, one process with one thread against two workers with one thread each. Every run is a process
of its own, so the times contain what starting takes.
"""

import os
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

from scripts.bench import harness
from vsvsr.video.ffmpeg import run

CLIP = Path(str(resources.files("vsvsr") / "assets" / "bigbuckbunny_320x180.mp4"))
FORM = ("--model", "fastreal-compact-x4", "--encoder", "ffv1", "-y")
ONE_PART = "import vsvsr.jobs.parts as parts; parts.SHORTEST_SECONDS = 1e9"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def film(path: Path, size: str, frames: int) -> Path:
    """The shipped clip, repeated."""
    scaled = ("-vf", f"scale={size}", "-frames:v", str(frames), "-c:v", "ffv1", str(path))
    status, _, said = run(["-v", "error", "-stream_loop", "-1", "-i", str(CLIP), *scaled])
    assert status == 0, said
    return path


def upscale(source: Path, *options: str, first: str = "", environment: dict[str, str] | None = None) -> harness.Measure:
    """Measure one run of the command."""
    code = f"{first}\nfrom vsvsr.cli import main; main()"
    command = [sys.executable, "-c", code, "upscale", str(source), str(source.with_suffix(".out.mkv")), *FORM, *options]
    variables = os.environ | (environment or {})
    return harness.wall(lambda: subprocess.run(command, env=variables, capture_output=True, check=True))


def compare(results: harness.Results, rounds: int, frames: int) -> None:
    """Seconds, and ratios within each round."""
    with tempfile.TemporaryDirectory() as folder:
        small = film(Path(folder, "small.mkv"), "160:90", frames)
        large = film(Path(folder, "large.mkv"), "320:180", frames)
        cases = {
            ("in parts", "in one part"): {
                "in parts": upscale(small, "--device", "-1"),
                "in one part": upscale(small, "--device", "-1", first=ONE_PART),
            },
            ("two workers", "one process"): {
                "two workers": upscale(large, "--devices=-1,-1", environment=ONE_THREAD),
                "one process": upscale(large, "--device", "-1", environment=ONE_THREAD),
            },
        }
        for (form, against), measures in cases.items():
            times = harness.in_turn(measures, rounds, warmups=0)
            results.add(form, {"s": times.median(form), f"to {against}": times.ratio(form, against)})


def main() -> None:
    """The command line."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=544)
    given = parser.parse_args()
    compare(harness.Results("jobs", given.csv), given.rounds, given.frames)


if __name__ == "__main__":
    main()
