"""Errors that users see."""


class UserError(ValueError):
    """What the user gave cannot be used; the message is one line: what was given, what is allowed or what to do."""


def check(fine: bool, name: str, given: object, allowed: str) -> None:
    """Raise the one-line error for an argument that is not ``fine``."""
    if not fine:
        raise UserError(f"{name}={given!r} is not possible; allowed: {allowed}")
