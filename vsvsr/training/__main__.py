"""``python -m vsvsr.training COMMAND ...``: build clips, and train networks on them.

On several GPUs: ``accelerate launch --num_processes 4 -m vsvsr.training RECIPE ...``.
"""

import argparse
import importlib
import pkgutil
import sys
from types import ModuleType

from vsvsr.errors import UserError
from vsvsr.training import recipes
from vsvsr.training.settings import add_options, read_options


def _commands() -> dict[str, ModuleType]:
    """Modules with ``Settings`` and ``run`` by the name of their command: ``build``, ``teach``, and every recipe."""
    names = {"build": "vsvsr.training.data.build", "teach": "vsvsr.training.teach"}
    names |= {found.name: f"{recipes.__name__}.{found.name}" for found in pkgutil.iter_modules(recipes.__path__)}
    return {name: importlib.import_module(module) for name, module in names.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the return value is the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vsvsr.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    try:
        known = _commands()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "vsvsr":
            raise
        print(f'error: training needs {error.name}; run: pip install "vsvsr[cli,train]"', file=sys.stderr)
        return 1
    for name, module in known.items():
        text = (module.__doc__ or "").strip()
        command = commands.add_parser(
            name, help=text.splitlines()[0], description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add_options(command, module.Settings)
        command.set_defaults(module=module)
    given = parser.parse_args(arguments)
    try:
        given.module.run(read_options(given.module.Settings, given))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
