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


def overhead(folder: Path, frames: int) -> dict[str, harness.Measure]:
    """A film in parts, and in one part."""
    source = film(folder / "small.mkv", "160:90", frames)
    return {
        "in parts": upscale(source, "--device", "-1"),
        "in one part": upscale(source, "--device", "-1", first=ONE_PART),
    }


def scaling(folder: Path, frames: int) -> dict[str, harness.Measure]:
    """A film by two workers, and by one process."""
    source = film(folder / "large.mkv", "320:180", frames)
    return {
        "two workers": upscale(source, "--devices=-1,-1", environment=ONE_THREAD),
        "one process": upscale(source, "--device", "-1", environment=ONE_THREAD),
    }


COMPARISONS = {"overhead": overhead, "scaling": scaling}


def compare(results: harness.Results, comparison: str, rounds: int, frames: int) -> None:
    """Seconds, and the ratio within each round."""
    with tempfile.TemporaryDirectory() as folder:
        measures = COMPARISONS[comparison](Path(folder), frames)
        form, against = measures
        times = harness.in_turn(measures, rounds, warmups=0)
        results.add(form, {"s": times.median(form), f"to {against}": times.ratio(form, against)})


def main() -> None:
    """The command line."""
    parser = harness.arguments(__doc__)
    parser.add_argument("comparisons", nargs="*", choices=COMPARISONS, default=list(COMPARISONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=544)
    given = parser.parse_args()
    results = harness.Results("jobs", given.csv)
    for comparison in given.comparisons:
        compare(results, comparison, given.rounds, given.frames)


if __name__ == "__main__":
    main()
