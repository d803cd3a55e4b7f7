"""``vsvsr benchmark``: how fast this machine is, in a form that can be sent back."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from vsvsr.cli.progress import show
from vsvsr.cli.upscale import check_filter
from vsvsr.errors import WrongArgumentError
from vsvsr.files import check_target, written_whole
from vsvsr.filters.registry import FILTERS
from vsvsr.jobs.benchmark import PARTS, SIZES, Case, Speed, cases, machine, measure

app = typer.Typer()

_WIDTH = 100
"""Columns of the table; on a narrower terminal lines are longer than it."""


@app.command()
def benchmark(
    *,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Filter of core.vsvsr, may be repeated; by default all, on a CPU FastReal."),
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            metavar="WxH",
            help="Size of the source, may be repeated; by default 640x360, 1280x720 and 1920x1080, on a CPU the first.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Weights, may be repeated; by default all that are here.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, max=60, help="Frames that are timed, of each.")] = 10,
    device: Annotated[
        int | None, typer.Option(help="CUDA device, -1 = CPU; by default the first GPU or the CPU.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all of it to this file, to be sent back.")
    ] = None,
) -> None:
    """Time every filter, model and back end that is installed, in fp32 and, on a GPU, in fp16.

    Frames a second are those of playback through VapourSynth. The parts of FastReal, in milliseconds of a frame, are
    timed one by one, though they overlap in playback: upload, step (the state), render (the picture), download, copy
    (into VapourSynth's frame). VRAM is what the filter took of the card. A run takes minutes; other work on the machine
    counts.
    """
    from vsvsr.engine.device import choose_device

    for name in filters or ():
        check_filter(name)
    on_cpu = choose_device(device).type == "cpu"
    chosen = [_size(text) for text in sizes] if sizes else list(SIZES[:1] if on_cpu else SIZES)
    names = filters or (["FastReal"] if on_cpu else list(FILTERS))
    wanted = [case for case in cases(names, chosen, on_cpu=on_cpu) if not model or case.model in model]
    if not wanted:
        raise WrongArgumentError("--model: no such weights are here; vsvsr weights list shows them")
    if json_file is not None:
        check_target(json_file)
    console, about = Console(stderr=True), machine(device)
    found: list[tuple[Case, Speed]] = []
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=console, transient=True) as bar:
        task = bar.add_task("")
        for case in wanted:
            bar.update(task, description=f"{len(found) + 1} of {len(wanted)}: {' '.join(_described(case))}")
            found.append((case, measure(case, device, frames)))
    _show(about, found)
    if json_file is not None:
        rows = [{**asdict(case), **asdict(speed)} for case, speed in found]
        with written_whole(json_file) as path:
            path.write_text(json.dumps({"machine": about, "frames": frames, "rows": rows}, indent=1), encoding="utf-8")
    if all(speed.fps is None for _, speed in found):
        raise typer.Exit(1)


def _show(about: dict[str, object], found: list[tuple[Case, Speed]]) -> None:
    console = Console()
    console.width = max(console.width, _WIDTH)
    for name, value in about.items():
        text = ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, dict) else value
        if text:
            show(console, f"{name:10}{text}")
    table = Table("model", "source", "", "", box=None, pad_edge=False)
    for number in ("fps", *(f"{part}\nms" for part in PARTS), "VRAM\nMB"):
        table.add_column(number, justify="right")
    for case, speed in found:
        fps = "failed" if speed.fps is None else f"{speed.fps:.2f}"
        parts = [f"{speed.parts[part]:.1f}" if part in speed.parts else "" for part in PARTS]
        table.add_row(*_described(case), fps, *parts, f"{speed.memory / 1e6:.0f}" if speed.memory else "")
    console.print(table)
    for case, speed in found:
        if speed.problem:
            show(console, f"{' '.join(_described(case))}: {speed.problem}")


def _described(case: Case) -> tuple[str, str, str, str]:
    return case.model, f"{case.width}x{case.height}", "fp16" if case.half else "fp32", case.backend


def _size(text: str) -> tuple[int, int]:
    sides = re.fullmatch(r"(\d{2,4})x(\d{2,4})", text)
    if sides is None:
        raise WrongArgumentError(f"--size {text}: write WIDTHxHEIGHT, as 1280x720")
    return int(sides[1]), int(sides[2])
