"""``vsvsr upscale``: a video file in, a larger one out."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
import vapoursynth as vs
from rich.console import Console
from rich.markup import escape

from vsvsr.cli.progress import Shown, show
from vsvsr.errors import UserError, WrongArgumentError
from vsvsr.filters.arguments import Argument
from vsvsr.filters.generate import own_arguments
from vsvsr.filters.registry import FILTERS
from vsvsr.filters.settings import RecurrentSettings, SharedSettings
from vsvsr.jobs.film import make_film
from vsvsr.jobs.order import Order
from vsvsr.video.encoder import Encoding
from vsvsr.video.size import Size

_KINDS: dict[type, tuple[Callable[[str], object], str]] = {
    bool: (int, "a whole number"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "text"),
    tuple: (int, "a whole number or several, separated by commas"),
}

_OPTIONS = ("model", "model_path", "device_index", "tile")
"""Arguments of every filter that have an option of their own."""

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
    frame: Annotated[
        int | None, typer.Option(min=0, help="Write this frame alone, as it is in the film; OUT may be a picture.")
    ] = None,
    width: Annotated[int | None, typer.Option(min=16, help="Scale the result down to this width.")] = None,
    height: Annotated[int | None, typer.Option(min=16, help="Scale the result down to this height.")] = None,
    fit: Annotated[
        str | None, typer.Option(metavar="WxH", help="Scale the result down to what fits into this, if it is larger.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Video encoder of ffmpeg, hevc_nvenc or ffv1 for example; by default one that OUT can hold, "
            "mostly libx264."
        ),
    ] = None,
    crf: Annotated[int, typer.Option(min=0, max=63, help="Quality for encoders that have it, lower is better.")] = 18,
    encoder_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Another ffmpeg output option, e.g. preset=slow.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", "-y", help="Replace OUT if it exists.")] = False,
    job: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where finished parts are kept; by default beside OUT.")
    ] = None,
    keep_job: Annotated[bool, typer.Option("--keep-job", help="Keep that folder when OUT is there.")] = False,
) -> None:
    """Upscale a video file. Audio, chapters, timestamps, colour and aspect ratio are kept.

    Finished parts are kept on disk: after a crash or an interruption the same command goes on where it was.
    """
    explicit = {"model": model, "model_path": model_path, "device_index": device, "tile": tile, "segment": segment}
    pairs = [f"{key}={value}" for key, value in explicit.items() if value is not None]
    options = tuple(_split(option) for option in encoder_option or ())
    _check_filter(filter_name)
    order = Order(
        source=source,
        target=target,
        filter_name=filter_name,
        arguments=parse_arguments(filter_name, [*pairs, *(arg or ())]),
        half=half,
        frames=_frames(start, end, frame),
        encoding=Encoding(encoder=encoder, crf=crf, options=options),
        size=_size(width, height, fit),
    )
    upscale_file(order, Console(stderr=True), overwrite=overwrite, job=job, keep_job=keep_job)


def upscale_file(
    order: Order, console: Console, *, overwrite: bool, job: Path | None = None, keep_job: bool = False
) -> None:
    """Make the film, with progress on ``console``. See `make_film`."""
    begun = time.monotonic()
    with Shown(order, console) as progress:
        film = make_film(order, overwrite=overwrite, job=job, keep_job=keep_job, progress=progress)
    seconds = time.monotonic() - begun
    made = progress.made
    rate = f"{made / seconds:.2f} fps" if made == film.frames else f"{made} of them now, {made / seconds:.2f} fps"
    show(console, f"{order.target}: {film.frames} frames of {film.width}x{film.height} in {seconds:.1f} s, {rate}")


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


def _frames(start: int, end: int | None, frame: int | None) -> slice:
    if frame is None:
        return slice(start, end)
    if start or end is not None:
        raise WrongArgumentError("--frame is one frame; give it without --start and --end")
    return slice(frame, frame + 1)


def _size(width: int | None, height: int | None, fit: str | None) -> Size | None:
    if sum(given is not None for given in (width, height, fit)) > 1:
        raise WrongArgumentError("give one of --width, --height and --fit")
    if fit is not None:
        sides = re.fullmatch(r"(\d{2,5})x(\d{2,5})", fit)
        if sides is None:
            raise WrongArgumentError(f"--fit {fit}: write WIDTHxHEIGHT, as 1920x1080")
        return Size(width=int(sides[1]), height=int(sides[2]), fit=True)
    if (width or height or 0) % 2:
        raise WrongArgumentError(f"{Size(width=width, height=height)} is odd; encoders want even sizes")
    return Size(width=width, height=height) if width or height else None


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
