"""``python -m vsvsr``, the same as ``vsvsr``."""

from vsvsr.cli import main

main()
