"""What a filter says of each of its arguments, and the checks that follow from it. No torch: the build needs this."""

import contextlib
import dataclasses
import math
import operator
import os
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, SupportsFloat, SupportsIndex

from vsvsr.errors import check

LARGEST_INTEGER = 2**31 - 1
"""What integers may be at most where nothing smaller is declared: VapourSynth counts frames and pixels in C's int."""


@dataclass(frozen=True)
class Argument:
    """One argument of a filter: what its field in the settings class is annotated with, and the field itself.

    Attributes:
        meaning: one sentence, without unit, range and default.
        unit: of a number.
        at_least: smallest number allowed.
        at_most: largest number allowed.
        zero: what 0 stands for where it is special; 0 is then allowed below ``at_least``, too.
        choices: texts allowed.
        path: what a text must be the path of.
        listed: whether the path of a text file stands for what is in it.
        each: what the values of a list are, in their order.
        otherwise: what is used when nothing is given, where the default is None or empty.
        name: the field's.
        kind: the field's type: int, bool, float, str, or tuple for a list of integers.
        default: the field's.
    """

    meaning: str
    _: dataclasses.KW_ONLY
    unit: str = ""
    at_least: int | None = None
    at_most: int | None = None
    zero: str = ""
    choices: tuple[str, ...] = ()
    path: Literal["", "file", "folder"] = ""
    listed: bool = False
    each: tuple[str, ...] = ()
    otherwise: str = ""
    name: str = ""
    kind: type = str
    default: object = None

    @property
    def allowed(self) -> str:
        """The values that may be given, in words."""
        if self.kind is bool:
            return "0 or 1"
        if self.kind is str:
            return f"an existing {self.path}" if self.path else " or ".join(self.choices) or "text"
        if self.at_least is None:
            return "a number" if self.kind is float else "a whole number"
        unit = f" {self.unit}" if self.unit else ""
        if self.at_most is not None:
            return f"{self.at_least} to {self.at_most}{unit}"
        if self.at_least > 0 and self.zero:
            bound = f"0 ({self.zero}) or at least {self.at_least}{unit}"
        else:
            bound = f"{self.at_least}{f' ({self.zero})' if self.zero else ''} or more{unit}"
        return f"{' and '.join(self.each)}, each {bound}" if self.each else bound

    @property
    def bounds(self) -> str:
        """``allowed``, or nothing where every value of the type is."""
        bounded = self.at_least is not None or self.choices or self.path or self.kind is bool
        return self.allowed if bounded else ""

    @property
    def usual(self) -> str:
        """The default as scripts write it, or what is used instead; empty where nothing is."""
        if self.default in (None, ""):
            return self.otherwise
        if isinstance(self.default, tuple):
            return str(list(self.default))
        return f"{float(self.default):g}" if isinstance(self.default, bool | float) else str(self.default)

    def read(self, given: object) -> object:
        """The value that ``given`` stands for: a value, or a list of values, as which VapourSynth passes them all.

        Raises:
            UserError: the number or the type of the values is wrong.
        """
        values = list(given) if isinstance(given, Sequence) and not isinstance(given, str | bytes) else [given]
        if self.kind is tuple:
            check(len(values) == len(self.each), self.name, values, self.allowed)
            return tuple(self._read_one(value, int) for value in values)
        check(len(values) == 1, self.name, values, f"one value: {self.allowed}")
        return self._read_one(values[0], self.kind)

    def _read_one(self, given: object, kind: type) -> object:
        value = given
        if kind is float and isinstance(given, SupportsFloat):
            with contextlib.suppress(OverflowError, TypeError, ValueError):  # arrays of several numbers
                value = float(given)
        elif kind is not str and isinstance(given, SupportsIndex):  # integers of numpy and torch, too
            with contextlib.suppress(TypeError, ValueError):
                value = operator.index(given)
            if kind is bool and value in (0, 1):
                value = bool(value)
        elif self.path and isinstance(given, os.PathLike):
            value = os.fspath(given)
        check(isinstance(value, kind), self.name, given, self.allowed)
        return value

    def check(self, value: object) -> None:
        """Refuse a value that is out of range, none of the choices, or not the path of what is needed.

        Raises:
            UserError: one line that says what was given and what is allowed.
        """
        if value is None or (value == "" and self.default == ""):  # not given
            return
        if isinstance(value, str):
            self._check_text(value)
        elif isinstance(value, tuple):
            self._check_numbers(value, list(value))
        elif isinstance(value, int | float) and self.kind is not bool:
            self._check_numbers((value,), value)

    def _check_numbers(self, values: tuple[float, ...], shown: object) -> None:
        check(all(self._in_range(value) for value in values), self.name, shown, self.allowed)
        check(max(values) <= LARGEST_INTEGER, self.name, shown, f"at most {LARGEST_INTEGER}")

    def _in_range(self, value: float) -> bool:
        if value == 0 and self.zero:
            return True
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= value <= high  # which NaN is not

    def _check_text(self, value: str) -> None:
        check("\0" not in value, self.name, value, f"{self.allowed}, without NUL characters")
        if self.path:
            check(exists(Path(value), self.path), self.name, value, self.allowed)
        elif self.choices:
            check(value in self.choices, self.name, value, self.allowed)
        else:
            surrogates = any("\ud800" <= character <= "\udfff" for character in value)
            check(not surrogates, self.name, value, f"{self.allowed} in UTF-8")


def arguments_of(settings: type) -> tuple[Argument, ...]:
    """The arguments that a settings class declares, in the order of its fields."""
    hints = typing.get_type_hints(settings, include_extras=True)
    declared = []
    for field in dataclasses.fields(settings):
        kind, argument = typing.get_args(hints[field.name])
        default = field.default
        declared.append(dataclasses.replace(argument, name=field.name, kind=_plain(kind), default=default))
    return tuple(declared)


def _plain(annotation: object) -> type:
    """The class of a field's values, without the None that stands for "not given"."""
    if isinstance(annotation, types.UnionType):
        annotation = next(member for member in typing.get_args(annotation) if member is not types.NoneType)
    return typing.get_origin(annotation) or typing.cast(type, annotation)


def exists(path: Path, kind: Literal["file", "folder"]) -> bool:
    """Whether there is a file, or a folder, of this name."""
    try:
        return path.is_file() if kind == "file" else path.is_dir()
    except (OSError, ValueError):  # a name that is too long, or cannot be one
        return False
