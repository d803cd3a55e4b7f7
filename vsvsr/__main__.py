"""``python -m vsvsr``, the same as ``vsvsr``."""

import signal


def main() -> None:
    """Run the command line. Until that minds signals itself, Ctrl-C ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from vsvsr.cli import main as command

    command()


if __name__ == "__main__":
    main()
