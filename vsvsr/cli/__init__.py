"""``vsvsr ...`` on the command line, for people who write no scripts."""

import os
import signal
import sys

INTERRUPTED = 130
"""Exit code after Ctrl-C, as typer and shells have it."""


def main() -> None:
    """Run the command line; what goes wrong is one line on stderr and exit code 1, or 2 for a wrong command line."""
    try:
        from vsvsr.cli.app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "vsvsr":
            raise
        sys.exit(f'vsvsr: the command line needs {error.name}; run: pip install "vsvsr[cli]"')
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = app()
    if code == INTERRUPTED:
        sys.stderr.flush()
        os._exit(code)  # VapourSynth may be at work on another thread; taking it down meanwhile would crash
    sys.exit(code)
