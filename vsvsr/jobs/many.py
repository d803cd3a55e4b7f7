"""Several films in one go: which they are, and what each becomes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vsvsr.errors import UserError, WrongArgumentError
from vsvsr.video.source import IMAGE_SUFFIXES

_KEPT = frozenset({".m4v", ".mkv", ".mov", ".mp4", ".ts", ".webm"})
"""Containers that are written as they are read; a film in another one becomes Matroska."""

_FILMS = _KEPT | frozenset(
    {".3gp", ".avi", ".divx", ".flv", ".m2ts", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".rm", ".vob", ".wmv", ".y4m"}
)
"""Endings of what is taken for a film in a folder."""


def are_several(inputs: Sequence[Path], target: Path) -> bool:
    """Whether ``target`` is a folder for films: of several inputs, or of a folder of films."""
    if len(inputs) > 1:
        return True
    return inputs[0].is_dir() and (target.is_dir() or target.suffix.lower() not in _FILMS | IMAGE_SUFFIXES | {".gif"})


def pair_up(inputs: Sequence[Path], folder: Path) -> list[tuple[Path, Path]]:
    """Every film, and what it becomes in ``folder``, where films of a folder keep their place; without hidden ones.

    Raises:
        UserError: an input is not there, or is a folder without films; ``WrongArgumentError``: two have one name.
    """
    pairs = []
    for given in inputs:
        if given.is_dir():
            found = [path for path in sorted(given.rglob("*")) if _is_film(path.relative_to(given)) and path.is_file()]
            films = [path for path in found if not path.resolve().is_relative_to(folder.resolve())]
            if not films:
                raise UserError(
                    f"{given} holds no films; numbered pictures are written as {folder}.mkv or {folder / 'f_%05d.png'}"
                )
            pairs += [(film, folder / _named(film.relative_to(given))) for film in films]
        elif given.is_file():
            pairs.append((given, folder / _named(Path(given.name))))
        else:
            raise UserError(f"{given} is neither a file nor a folder")
    # Names that differ in case alone are one file on Windows and macOS.
    counted = Counter(str(target).casefold() for _, target in pairs)
    twice = [target for _, target in pairs if counted[str(target).casefold()] > 1]
    if twice:
        raise WrongArgumentError(f"{twice[0]} would be made of several inputs; give them one by one")
    return pairs


def _is_film(relative: Path) -> bool:
    return relative.suffix.lower() in _FILMS and not any(part.startswith(".") for part in relative.parts)


def _named(relative: Path) -> Path:
    return relative if relative.suffix.lower() in _KEPT else relative.with_name(f"{relative.name}.mkv")
