"""Rewrites what is made from the filters' settings: the typed functions of the package, the tables in docs/filters.

The plugin's signatures are made when it is built (`vsvsr.filters.signatures`), the help of the command line when it is
shown. Run ``python -m vsvsr.filters.generate`` after a change of an argument.
"""

import dataclasses
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from vsvsr.filters.arguments import Argument
from vsvsr.filters.registry import FILTERS
from vsvsr.filters.settings import SharedSettings
from vsvsr.filters.weights import published

ROOT = Path(__file__).parents[2]
COMMAND = "python -m vsvsr.filters.generate"

_WIDTH = 120
_TYPES: dict[type, str] = {bool: "bool", int: "int", float: "float", str: "str", tuple: "Sequence[int]"}


def generated() -> dict[Path, str]:
    """The text of every file that has a generated part, by path."""
    package = ROOT / "vsvsr" / "__init__.py"
    pages = {page(name): _replaced(_written(name), "<!-- ", " -->", table(name)) for name in FILTERS}
    return {package: _formatted(_replaced(package.read_text(), "# ", "", typed_functions())), **pages}


def page(name: str) -> Path:
    """The page about a filter in the documentation."""
    return ROOT / "docs" / "filters" / f"{name.lower()}.md"


def _written(name: str) -> str:
    """The page as it is, or the beginning of one."""
    if page(name).is_file():
        return page(name).read_text()
    return f"# {name}\n\n{_summary(name)}\n\n## Arguments\n\n{''.join(_markers('<!-- ', ' -->'))}"


def _summary(name: str) -> str:
    return (FILTERS[name].settings.__doc__ or "").splitlines()[0]


def typed_functions() -> str:
    """One function with types and a docstring per filter."""
    names = sorted([*FILTERS, "Stats", "Version", "upscale"], key=lambda name: (not name.isupper(), name))
    functions = [_typed_function(name) for name in FILTERS]
    return f"__all__ = {names}\n\n\n" + "\n\n".join((*functions, *map(_overload, FILTERS)))


def _typed_function(name: str) -> str:
    arguments = arguments_of_filter(name)
    lines = [
        f"def {name}(",
        '    clip: "vs.VideoNode",',
        "    *,",
        *_parameters(arguments),
        ') -> "vs.VideoNode":',
        f'    """{_summary(name)}',
        "",
        "    Args:",
        "        clip: RGBS or RGBH, from 16x16.",
        *(line for argument in arguments for line in _wrapped(f"{argument.name}: {_sentence(argument)}")),
        "",
        "    Returns:",
        "        The clip enlarged by the scale of the weights, in its own format. Frame n depends on the clip and the",
        "        arguments alone.",
        "",
        "    Raises:",
        "        vapoursynth.Error: an argument, the clip or the weights cannot be used.",
        '    """',
        f'    return _apply("{name}", locals())',
        "",
    ]
    return "\n".join(lines)


def _overload(name: str) -> str:
    """`vsvsr.upscale` with one filter and its arguments; the first filter is the default."""
    default = f' = "{name}"' if name == next(iter(FILTERS)) else ""
    lines = [
        "@overload",
        "def upscale(",
        '    clip: "vs.VideoNode",',
        f'    name: Literal["{name}"]{default},',
        "    *,",
        *_parameters(arguments_of_filter(name)),
        ') -> "vs.VideoNode": ...',
        "",
    ]
    return "\n".join(lines)


def _parameters(arguments: Iterable[Argument]) -> Iterator[str]:
    return (f"    {argument.name}: {_annotation(argument)} = None," for argument in arguments)


def _annotation(argument: Argument) -> str:
    if argument.choices:
        return f"Literal{list(argument.choices)} | None"
    plain = "str | PathLike[str]" if argument.path else _TYPES[argument.kind]
    # Names that are imported for type checkers only.
    return f'"{plain} | None"' if argument.path or argument.kind is tuple else f"{plain} | None"


def _sentence(argument: Argument) -> str:
    """Meaning, range and default, for a docstring."""
    parts = [argument.meaning]
    if argument.bounds and argument.kind is not bool:
        parts.append(argument.bounds)
    if argument.usual:
        parts.append(f"default {argument.default if argument.kind is bool else argument.usual}")
    return f"{'; '.join(parts)}.".replace("`", "``")


def _wrapped(text: str) -> Iterable[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=" " * 8,
        subsequent_indent=" " * 12,
        break_on_hyphens=False,
        break_long_words=False,
    )


def table(name: str) -> str:
    """Every argument of a filter, for its page."""
    rows = (
        f"| `{argument.name}` | {argument.usual} | {argument.bounds} | {argument.meaning} |"
        for argument in arguments_of_filter(name)
    )
    return "\n".join(("| argument | default | allowed | meaning |", "| --- | --- | --- | --- |", *rows, ""))


def arguments_of_filter(name: str) -> tuple[Argument, ...]:
    """The arguments of a filter; those of ``model`` include the names that the manifest knows."""
    return tuple(
        dataclasses.replace(argument, choices=published(name)) if argument.name == "model" else argument
        for argument in FILTERS[name].settings.arguments()
    )


def own_arguments(name: str) -> tuple[Argument, ...]:
    """Those that not every filter has, or that the filter declares otherwise than `SharedSettings`."""
    shared = SharedSettings.arguments()
    declared = zip(FILTERS[name].settings.arguments(), arguments_of_filter(name), strict=True)
    return tuple(argument for raw, argument in declared if raw not in shared)


def _replaced(text: str, opening: str, closing: str, block: str) -> str:
    """``text`` with ``block`` between its two marker lines."""
    first, last = _markers(opening, closing)
    before, _, rest = text.partition(first)
    _, _, after = rest.partition(last)
    return f"{before}{first}\n{block}\n{last}{after}"


def _markers(opening: str, closing: str) -> tuple[str, str]:
    return f"{opening}generated by {COMMAND}{closing}\n", f"{opening}end of the generated part{closing}\n"


def _formatted(code: str) -> str:
    command = (sys.executable, "-m", "ruff", "format", "--stdin-filename", "vsvsr/__init__.py", "-")
    return subprocess.run(command, input=code, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def main() -> None:
    """Write the files."""
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
