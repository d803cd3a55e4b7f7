"""``vsvsr upscale``: a video file in, a larger one out."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
import vapoursynth as vs
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from vsvsr.errors import UserError, WrongArgumentError
from vsvsr.filters.apply import apply
from vsvsr.filters.arguments import Argument
from vsvsr.filters.generate import own_arguments
from vsvsr.filters.registry import FILTERS
from vsvsr.filters.settings import RecurrentSettings, SharedSettings
from vsvsr.video.encoder import Encoding
from vsvsr.video.film import process_film

_KINDS: dict[type, tuple[Callable[[str], object], str]] = {
    bool: (int, "a whole number"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "text"),
    tuple: (int, "a whole number or several, separated by commas"),
}

_OPTIONS = ("model", "model_path", "device_index", "tile")
"""Arguments of every filter that have an option of their own."""

LINE_SECONDS = 15.0
"""Time between two lines of progress where there is no terminal."""

app = typer.Typer()


def _help(name: str) -> str:
    """What an option says that is an argument of filters."""
    arguments = {argument.name: argument for argument in RecurrentSettings.arguments()}
    return _described(arguments[name])


def _described(argument: Argument) -> str:
    default = f"default {argument.usual}" if argument.usual else ""
    text = "; ".join(part for part in (argument.meaning, argument.bounds, default) if part)
    return escape(f"{text[0].upper()}{text[1:]}.")


def _filter_help() -> str:
    """The arguments of every filter, a paragraph each."""
    shared = tuple(argument for argument in SharedSettings.arguments() if argument.name not in _OPTIONS)
    paragraphs = ["Arguments for --arg:"]
    for name, arguments in {"every filter": shared, **{name: own_arguments(name) for name in FILTERS}}.items():
        paragraphs.append(f"[bold]{name}[/bold]")
        paragraphs += [f"[cyan]{argument.name}[/cyan]  {_described(argument)}" for argument in arguments]
    return "\n\n".join(paragraphs)


@app.command(epilog=_filter_help())
def upscale(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Any video that ffmpeg reads, or a folder of numbered pictures.")
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="The file to write; its ending chooses the container. frame_%04d.png writes pictures."
        ),
    ],
    *,
    filter_name: Annotated[str, typer.Option("--filter", help="Filter of core.vsvsr.")] = "FastReal",
    model: Annotated[str | None, typer.Option(help=_help("model"))] = None,
    model_path: Annotated[Path | None, typer.Option(help=_help("model_path"))] = None,
    device: Annotated[int | None, typer.Option(help=_help("device_index"))] = None,
    half: Annotated[bool, typer.Option("--half", help="Compute in fp16 (on a GPU).")] = False,
    tile: Annotated[str | None, typer.Option(metavar="W,H", help=_help("tile"))] = None,
    segment: Annotated[int | None, typer.Option(help=_help("segment"))] = None,
    arg: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Any argument of the filter; see below.")
    ] = None,
    start: Annotated[int, typer.Option(min=0, help="First frame to write.")] = 0,
    end: Annotated[int | None, typer.Option(min=1, help="Frame to stop before.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Video encoder of ffmpeg; by default one that OUT can hold, mostly libx264.")
    ] = None,
    crf: Annotated[int, typer.Option(min=0, max=63, help="Quality for lib* encoders, lower is better.")] = 18,
    encoder_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Another ffmpeg output option, e.g. preset=slow.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", "-y", help="Replace OUT if it exists.")] = False,
) -> None:
    """Upscale a video file. Audio, chapters, timestamps, colour and aspect ratio are kept."""
    explicit = {"model": model, "model_path": model_path, "device_index": device, "tile": tile, "segment": segment}
    pairs = [f"{key}={value}" for key, value in explicit.items() if value is not None]
    options = tuple(_split(option) for option in encoder_option or ())
    upscale_file(
        source,
        target,
        filter_name=filter_name,
        arguments=[*pairs, *(arg or ())],
        half=half,
        frames=slice(start, end),
        encoding=Encoding(encoder=encoder, crf=crf, options=options),
        overwrite=overwrite,
        console=Console(stderr=True),
    )


def upscale_file(
    source: Path,
    target: Path,
    *,
    filter_name: str,
    arguments: list[str],
    half: bool,
    frames: slice,
    encoding: Encoding,
    overwrite: bool,
    console: Console,
) -> None:
    """Upscale ``source`` into ``target``, with progress on ``console``.

    Args:
        arguments: ``key=value`` pairs for the filter.
        half: hand frames to the filter as fp16.
        frames: the part to write; the pixels are those of the whole.

    Raises:
        UserError: something about the files, the filter or ffmpeg; ``WrongArgumentError``: about the arguments.
    """
    _check_filter(filter_name)
    values = parse_arguments(filter_name, arguments)

    def change(clip: vs.VideoNode) -> vs.VideoNode:
        return apply(filter_name, clip.resize.Point(format=vs.RGBH) if half else clip, values)

    begun = time.monotonic()
    with _progress(filter_name, target, console) as (on_index, on_frame):
        film = process_film(
            source,
            target,
            change,
            frames=frames,
            encoding=encoding,
            overwrite=overwrite,
            on_index=on_index,
            on_frame=on_frame,
        )
    seconds = time.monotonic() - begun
    console.print(
        f"{target}: {film.frames} frames of {film.width}x{film.height} in {seconds:.1f} s, "
        f"{film.frames / seconds:.2f} fps",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


@contextmanager
def _progress(
    filter_name: str, target: Path, console: Console
) -> Iterator[tuple[Callable[[int], None], Callable[[int, int], None]]]:
    """What hears of indexing and of frames: a bar on a terminal, elsewhere a line from time to time."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("indexing", total=100)
        shown = time.monotonic()

        def show(text: str) -> None:
            nonlocal shown
            if not console.is_terminal and time.monotonic() - shown >= LINE_SECONDS:
                shown = time.monotonic()
                console.print(f"{target}: {text}", highlight=False, soft_wrap=True, markup=False)

        def on_index(percent: int) -> None:
            bar.update(task, completed=percent)
            show(f"indexing, {percent} %")

        def on_frame(done: int, total: int) -> None:
            if done == 0:
                bar.reset(task, description=filter_name, total=total)
            bar.update(task, completed=done)
            show(f"{done} of {total} frames")

        yield on_index, on_frame


def parse_arguments(filter_name: str, pairs: list[str]) -> dict[str, object]:
    """The values of ``key=value`` pairs, as the filter's settings declare them; lists are separated by commas."""
    settings = FILTERS[filter_name].settings
    known = {argument.name: argument for argument in settings.arguments()}
    parsed: dict[str, object] = {}
    for pair in pairs:
        key, value = _split(pair)
        if key not in known:
            raise WrongArgumentError(f"{pair}: the arguments of {filter_name} are {', '.join(known)}")
        parsed[key] = _parse(pair, value, known[key].kind)
    try:
        settings.parse(parsed)
    except UserError as error:
        raise WrongArgumentError(f"{filter_name}: {error}") from None
    return parsed


def _parse(pair: str, text: str, kind: type) -> object:
    convert, described = _KINDS[kind]
    try:
        return [convert(part) for part in text.split(",")] if kind is tuple else convert(text)
    except ValueError:
        raise WrongArgumentError(f"{pair}: {text!r} is not {described}") from None


def _split(pair: str) -> tuple[str, str]:
    key, equals, value = pair.partition("=")
    if not equals:
        raise WrongArgumentError(f"{pair}: write key=value")
    return key, value


def _check_filter(name: str) -> None:
    if not hasattr(vs.core, "vsvsr"):
        raise UserError("the VapourSynth plugin is not loaded; vsvsr doctor says why")
    if name not in FILTERS:
        raise WrongArgumentError(f"--filter {name}: the filters are {', '.join(FILTERS)}")


class _Rate(ProgressColumn):
    """Recent frames per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f} fps" if task.speed and not task.finished else "")
