"""``vsvsr weights``: look at, install and check published weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from vsvsr import weights
from vsvsr.errors import UserError

app = typer.Typer(help="Look at, install and check published weights.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A name that `vsvsr weights list` shows.")]


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


@app.command("list")
def list_weights() -> None:
    """Show the published weights and whether they are on this machine."""
    table = Table("name", "filter", "size", "licence", "state", box=None, pad_edge=False)
    for row in weights.MANIFEST:
        missing = "missing" if row.shipped else "not installed"
        state = ("shipped" if row.shipped else "installed") if weights.location(row).is_file() else missing
        table.add_row(row.name, row.model, f"{row.size / 1e6:.2f} MB", row.licence, state)
    Console().print(table)


@app.command()
def install(
    name: Name,
    source: Annotated[Path | None, typer.Option("--from", help="A copy of the file on this machine.")] = None,
) -> None:
    """Fetch weights, compare them with the published sha256, and put them into the cache folder."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with _one_line_errors(), Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        path = weights.install(name, lambda done, total: bar.update(task, completed=done, total=total), local=source)
    typer.echo(path)


@app.command()
def verify(name: Name) -> None:
    """Compare weights on this machine with the published sha256."""
    with _one_line_errors():
        weights.verify(name)
    typer.echo(f"{name}: as published")


@app.command()
def path(name: Name) -> None:
    """Print where verified weights lie, and nothing else."""
    with _one_line_errors():
        found = weights.verify(name)
    typer.echo(found)
