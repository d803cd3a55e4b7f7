"""The order of the rooms: who imports whom, read from the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import vsvsr

PACKAGE = Path(vsvsr.__file__).parent
KERNELS = PACKAGE.parent / "triton_kernels"

# A room imports from itself and from rooms further down.
ROOMS = (
    "__main__",
    "__init__",
    "cli",
    "jobs",
    "bridge",
    "training",
    "filters",
    "engine",
    "video",
    "evaluation",
    "streaming",
    "models",
    "weights",
    "ops",
    "triton_kernels",
    "files",
    "errors",
)


def modules() -> dict[str, Path]:
    """All modules by dotted name without the leading ``vsvsr.``; the package itself is ``__init__``."""
    paths = {path.relative_to(PACKAGE): path for path in PACKAGE.rglob("*.py")}
    paths |= {Path("triton_kernels") / path.relative_to(KERNELS): path for path in KERNELS.rglob("*.py")}
    named = {".".join(relative.with_suffix("").parts): path for relative, path in paths.items()}
    return {name.removesuffix(".__init__"): path for name, path in named.items()}


MODULES = modules()


def imported(module: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a module imports, in functions and for the type checker too."""
    path = MODULES[module]
    package = ["vsvsr", *module.split(".")] if path.name == "__init__.py" else ["vsvsr", *module.split(".")[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def room(name: str) -> str:
    """The room of a dotted name that begins with ``vsvsr``: what is no module there is of the package itself."""
    first = name.split(".")[1] if "." in name else ""
    return first if any(module.split(".")[0] == first for module in MODULES) else "__init__"


def arrows() -> Iterator[tuple[str, str, str]]:
    """From room, to room, where; arrows within a room are left out."""
    for module, path in MODULES.items():
        for line, name in imported(module):
            source = module.split(".")[0]
            if name.split(".")[0] == "vsvsr" and room(name) != source:
                yield source, room(name), f"{path}:{line}"


def test_every_room_has_its_place_in_the_order() -> None:
    assert {module.split(".")[0] for module in MODULES} <= set(ROOMS)


def test_rooms_import_downwards_only() -> None:
    upwards = [f"{where}: {source} -> {to}" for source, to, where in arrows() if ROOMS.index(source) > ROOMS.index(to)]
    assert not upwards, "\n".join(upwards)


def test_the_command_line_leaves_training_alone() -> None:
    assert not [where for source, to, where in arrows() if (source, to) == ("cli", "training")]


def test_streaming_knows_neither_torch_nor_vapoursynth() -> None:
    libraries = {
        name.split(".")[0] for module in MODULES if module.split(".")[0] == "streaming" for _, name in imported(module)
    }
    assert "collections" in libraries
    assert not libraries & {"torch", "vapoursynth"}
