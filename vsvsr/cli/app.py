"""The subcommands, and how their failures are shown."""

import sys

import typer

from vsvsr.cli import INTERRUPTED, demo, doctor, evaluate, upscale, weights
from vsvsr.errors import UserError

_commands = typer.Typer(
    name="vsvsr",
    help="Neural video super-resolution.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_commands.add_typer(upscale.app)
_commands.add_typer(demo.app)
_commands.add_typer(doctor.app)
_commands.add_typer(evaluate.app)
_commands.add_typer(weights.app, name="weights")


def app() -> int:
    """Run the command that the arguments of the process ask for; the exit code."""
    try:
        code, message = _commands(standalone_mode=False) or 0, ""
    except typer.TyperException as error:
        code, message = error.exit_code, error.format_message()
    except UserError as error:
        code, message = 2 if isinstance(error, upscale.WrongArgumentError) else 1, str(error)
    if code == INTERRUPTED:
        message = "interrupted"
    if message:
        sys.stderr.write(f"vsvsr: {' '.join(message.split())}\n")
    return code
