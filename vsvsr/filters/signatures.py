"""Prints the include file from which the native plugin registers the filters; run at build time, without torch."""

from vsvsr.filters.registry import FILTERS


def main() -> None:
    """One ``VSVSR_FILTER(name, arguments)`` per filter."""
    for name, definition in FILTERS.items():
        print(f'VSVSR_FILTER("{name}", "{definition.settings.signature()}")')


if __name__ == "__main__":
    main()
