"""``python -m vsvsr.cli``, the same as ``vsvsr``."""

from vsvsr.cli import main

main()
