"""Errors that users see."""

_LONGEST_VALUE = 300
"""Characters of a wrong value that a message repeats."""


class UserError(ValueError):
    """What the user gave cannot be used; the message is one line: what was given, what is allowed or what to do."""


def check(fine: bool, name: str, given: object, allowed: str) -> None:
    """Raise the one-line error for an argument that is not ``fine``."""
    if not fine:
        raise UserError(f"{name}={_shown(given)} is not possible; allowed: {allowed}")


def _shown(given: object) -> str:
    """The value as Python writes it, cut where it is very long."""
    try:
        text = repr(given)
    except ValueError:  # an integer of more digits than Python converts
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
