"""Settings as dataclasses, from which the command line is generated: one declaration for each option."""

import argparse
import dataclasses
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, get_args, get_origin, get_type_hints

from vsvsr.errors import UserError


@dataclass(frozen=True)
class Option:
    """What the command line says of a field ``some_name``: ``--some-name``, which must be given if it has no default.

    A subclass can give another default to the bare field, and keeps what its base declares.

    Attributes:
        help: a phrase.
        positional: taken by its place instead.
        at_least: what the number, or each of several, must reach.
    """

    help: str
    positional: bool = False
    at_least: float | None = None


class Settings(Protocol):
    """Any dataclass whose fields are annotated with an `Option`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def add_options(parser: argparse.ArgumentParser, kind: type[Settings]) -> None:
    """An argument of ``parser`` for each field of the dataclass ``kind``."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        option = _option(kind, field.name)
        if option.positional:
            parser.add_argument(field.name, type=hints[field.name], help=option.help)
            continue
        shown = not any(field.default is silent for silent in (MISSING, None, False))
        parser.add_argument(
            _flag(field.name),
            help=option.help + (" (default: %(default)s)" if shown else ""),
            **_form(hints[field.name]),
            **({"required": True} if field.default is MISSING else {"default": field.default}),
        )


def read_options[T: Settings](kind: type[T], arguments: argparse.Namespace) -> T:
    """Settings of what a parser with `add_options` has read.

    Raises:
        UserError: a number is too small.
    """
    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(kind)}
    for name, value in values.items():
        least = _option(kind, name).at_least
        for number in value if isinstance(value, list | tuple) else (value,):
            if least is not None and number is not None and not number >= least:  # NaN, too
                raise UserError(f"{_flag(name)} {number} is not possible; allowed: {least:g} or more")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def write_options(settings: Settings) -> list[str]:
    """Arguments from which a parser with `add_options` reads ``settings``; what has its default value is left out."""
    positional: list[str] = []
    named: list[str] = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if _option(type(settings), field.name).positional:
            positional.append(str(value))
        elif value != field.default:
            parts = value if isinstance(value, tuple) else () if value is True else (value,)
            named += [_flag(field.name), *map(str, parts)]
    return positional + named


def check_shares(settings: Settings, *names: str) -> None:
    """Raise a UserError where one of these fields, a number or several, does not lie between 0 and 1."""
    for name in names:
        value = getattr(settings, name)
        for share in value if isinstance(value, tuple) else (value,):
            if not 0 <= share <= 1:
                raise UserError(f"{_flag(name)} {share} is not possible; allowed: 0 to 1")


def _flag(name: str) -> str:
    """The option for a field."""
    return "--" + name.replace("_", "-")


def _option(kind: type, name: str) -> Option:
    """Declaration of the field by the nearest class that has one."""
    for base in kind.__mro__:
        annotation = get_type_hints(base, include_extras=True).get(name) if name in base.__annotations__ else None
        for part in get_args(annotation):
            if isinstance(part, Option):
                return part
    raise TypeError(f"{kind.__name__}.{name} has no Option")


def _form(hint: Any) -> dict[str, Any]:
    """Arguments of ``add_argument`` for values of a type."""
    if type(None) in get_args(hint):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint), "type": type(get_args(hint)[0])}
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        return {"type": parts[0], "nargs": "*" if parts[-1] is Ellipsis else len(parts)}
    return {"action": "store_true"} if hint is bool else {"type": hint}


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What every recipe with a run folder has."""

    data: Annotated[Path, Option("folder of clips that build made", positional=True)]
    validation: Annotated[Path, Option("another one, of sources that are not trained on", positional=True)]
    run: Annotated[
        Path,
        Option("folder of checkpoint, weights and log; the same command resumes", positional=True),
    ]
    steps: Annotated[int, Option("batches to train on", at_least=1)]
    frames: Annotated[int, Option("length of a sequence", at_least=1)] = 30
    crop: Annotated[int, Option("height and width of the low-resolution crops", at_least=1)] = 48
    learning_rate: Annotated[float, Option("at its highest", at_least=0)] = 1e-3
    seed: Annotated[int, Option("of everything random", at_least=0)] = 0
    save_minutes: Annotated[float, Option("time between checkpoints, each with validation and a row of the log")] = 5.0
    metadata: Annotated[Path | None, Option("JSON object of strings for the exported files")] = None


@dataclass(frozen=True, kw_only=True)
class CropValidationSettings(RunSettings):
    """What recipes have that are judged by crops."""

    validation_crops: Annotated[int, Option("crops to judge by", at_least=1)] = 12


@dataclass(frozen=True, kw_only=True)
class BatchSettings(RunSettings):
    """What recipes have that several processes can share."""

    batch: Annotated[int, Option("sequences in a batch, on all devices together", at_least=1)] = 4


@dataclass(frozen=True, kw_only=True)
class AveragedSettings(BatchSettings):
    """What recipes with averaged weights and mixed precision have."""

    ema: Annotated[float, Option("decay of the averaged weights, which are what is validated and exported")] = 0.999
    bf16: Annotated[bool, Option("mixed precision: convolutions in bfloat16; weights and losses in fp32")] = False
