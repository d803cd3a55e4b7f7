"""The subcommands, and how their failures are shown."""

import importlib.metadata
import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from vsvsr.cli import benchmark, demo, doctor, evaluate, export, plan, upscale, weights
from vsvsr.errors import UserError, WrongArgumentError
from vsvsr.files import explain

_commands = typer.Typer(
    name="vsvsr",
    help="Neural video super-resolution.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_commands.add_typer(upscale.app)
_commands.add_typer(plan.app)
_commands.add_typer(demo.app)
_commands.add_typer(doctor.app)
_commands.add_typer(evaluate.app)
_commands.add_typer(export.app)
_commands.add_typer(benchmark.app)
_commands.add_typer(weights.app, name="weights")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vsvsr {importlib.metadata.version('vsvsr')}")
        raise typer.Exit


@_commands.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


def run() -> tuple[int, str]:
    """Run the command that the arguments of the process ask for; the exit code, and the line for stderr or nothing.

    The one place where errors become that line, those of the operating system included.
    """
    code = 1
    try:
        code, message = _commands(standalone_mode=False) or 0, ""
        sys.stdout.flush()
    except typer.TyperException as error:
        code, message = error.exit_code, error.format_message()
    except UserError as error:
        code, message = 2 if isinstance(error, WrongArgumentError) else 1, str(error)
    except typer.Abort:
        message = "no answer"  # to a question; the input has ended
    except BrokenPipeError:
        message = ""  # whoever read our output wants no more of it
    except OSError as error:
        message = explain(error)
    if code:
        _drop_output()
    return code, f"vsvsr: {' '.join(message.split())}\n" if message else ""


def app() -> int:
    """Run the command, show its error; the exit code."""
    code, message = run()
    sys.stderr.write(message)
    return code


def _drop_output() -> None:
    """Forget output that cannot be written: Python would try again at its end, and show a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
