"""Errors that users see."""

_LONGEST_VALUE = 300
"""Characters of a wrong value that a message repeats."""


class UserError(ValueError):
    """What the user gave cannot be used; the message is one line: what was given, what is allowed or what to do."""


def check(fine: bool, name: str, given: object, allowed: str) -> None:
    """Raise the one-line error for an argument that is not ``fine``."""
    if not fine:
        raise UserError(f"{name}={shown(_repr(given))} is not possible; allowed: {allowed}")


def shown(text: str, most: int = _LONGEST_VALUE) -> str:
    """Somebody else's text as part of a message: in one line, cut where it is very long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."


def _repr(given: object) -> str:
    """The value as Python writes it."""
    try:
        return repr(given)
    except ValueError:  # an integer of more digits than Python converts
        return "a number of thousands of digits"


class WrongArgumentError(UserError):
    """The command line itself is wrong: exit code 2."""
