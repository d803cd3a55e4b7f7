"""Errors that users see."""


class UserError(ValueError):
    """What the user gave cannot be used; the message is one line: what was given, what is allowed or what to do."""
