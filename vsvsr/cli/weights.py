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
        here, missing = ("added", "to be brought") if row.origin else ("installed", "not installed")
        if row.shipped:
            here, missing = "shipped", "missing"
        size = f"{row.size / 1e6:.2f} MB" if row.size else ""
        rows.append((row.name, row.model, size, row.licence, here if weights.present(row) else missing))
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
def add(
    files: Annotated[
        list[Path],
        typer.Argument(help="The authors' files; of Stable Diffusion 2.1-base a folder, too.", metavar="FILE"),
    ],
    name: Annotated[str, typer.Option(help="Which weights the file holds, where that cannot be told.")] = "",
) -> None:
    """Bring weights once: recognise the authors' files, check every tensor, and put them into the cache folder."""
    from vsvsr.filters.bring import bring

    for file in files:
        brought = bring(file, name)
        if brought.left_out:
            some = ", ".join(brought.left_out[:3])
            typer.echo(
                f"vsvsr: {file}: {len(brought.left_out)} entries are no part of {brought.name} and not used ({some})",
                err=True,
            )
        typer.echo(f"{brought.name}: {brought.path}")


@app.command()
def verify(name: Name) -> None:
    """Compare weights on this machine with the published sha256; for those that were added, see that they are there."""
    weights.verify(name)
    added = any(row.name == name and row.origin for row in weights.MANIFEST)
    typer.echo(f"{name}: added; every tensor was checked then" if added else f"{name}: as published")


@app.command()
def path(name: Name) -> None:
    """Print where verified weights lie, and nothing else."""
    typer.echo(weights.verify(name))
