"""``vsvsr weights``: look at, install and check published weights."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from vsvsr import weights

app = typer.Typer(help="Look at, install and check published weights.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A name that `vsvsr weights list` shows.")]


@app.command("list")
def list_weights() -> None:
    """Show the published weights and whether they are on this machine."""
    rows = [("name", "filter", "size", "licence", "state")]
    for row in weights.MANIFEST:
        missing = "missing" if row.shipped else "not installed"
        state = ("shipped" if row.shipped else "installed") if weights.location(row).is_file() else missing
        rows.append((row.name, row.model, f"{row.size / 1e6:.2f} MB", row.licence, state))
    # Names are there to be typed: lines longer than the terminal, rather than cut ones.
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


@app.command()
def install(
    name: Name,
    source: Annotated[Path | None, typer.Option("--from", help="A copy of the file on this machine.")] = None,
) -> None:
    """Fetch weights, compare them with the published sha256, and put them into the cache folder."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        # Shown once there is something to show: an unknown name is an error, not progress.
        task = bar.add_task(name, total=None, visible=False)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        path = weights.install(name, progress, local=source)
    typer.echo(path)


@app.command()
def verify(name: Name) -> None:
    """Compare weights on this machine with the published sha256."""
    weights.verify(name)
    typer.echo(f"{name}: as published")


@app.command()
def path(name: Name) -> None:
    """Print where verified weights lie, and nothing else."""
    typer.echo(weights.verify(name))
