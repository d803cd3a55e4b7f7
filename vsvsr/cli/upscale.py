"""``vsvsr upscale``: videos in, larger ones out."""

import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

import typer
import vapoursynth as vs
from rich.console import Console
from rich.markup import escape

from vsvsr.cli.progress import Shown, Told, show
from vsvsr.errors import UserError, WrongArgumentError
from vsvsr.files import explain, refuse_input
from vsvsr.filters.arguments import Argument
from vsvsr.filters.generate import own_arguments
from vsvsr.filters.registry import FILTERS
from vsvsr.filters.settings import RecurrentSettings, SharedSettings
from vsvsr.jobs.cluster import Cluster
from vsvsr.jobs.estimate import estimate
from vsvsr.jobs.film import make_film, tell_what_is_left_out
from vsvsr.jobs.many import are_several, pair_up
from vsvsr.jobs.order import Order
from vsvsr.video.encoder import Encoding, wants_rgb
from vsvsr.video.film import check_paths, picture_files
from vsvsr.video.size import Size

_KINDS: dict[type, tuple[Callable[[str], object], str]] = {
    bool: (int, "a whole number"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "text"),
    tuple: (int, "a whole number or several, separated by commas"),
}

_OPTIONS = ("model", "model_path", "device_index", "tile", "fp16")
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
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="IN... OUT",
            help="IN is any video that ffmpeg reads, or a folder of numbered pictures. OUT is the file to write; its "
            "ending chooses the container, frame_%04d.png writes pictures. Of several IN, or of a folder of videos, "
            "OUT is a folder; what is in it already is left out.",
        ),
    ],
    *,
    filter_name: Annotated[str, typer.Option("--filter", help="Filter of core.vsvsr.")] = "FastReal",
    model: Annotated[str | None, typer.Option(help=_help("model"))] = None,
    model_path: Annotated[Path | None, typer.Option(help=_help("model_path"))] = None,
    device: Annotated[int | None, typer.Option(help=_help("device_index"))] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="0,1,...",
            help="Several CUDA devices of this machine at once; -1,-1: two processes on its CPU.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="The machines of a running Ray cluster, or local: all of this machine."),
    ] = None,
    send_source: Annotated[
        bool, typer.Option("--send-source", help="Send IN to the machines, which then need not share folders.")
    ] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help=_help("fp16"))] = False,
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
    fps: Annotated[
        str | None, typer.Option(metavar="RATE", help="Frames a second of a folder of pictures, as 24000/1001; 25.")
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
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Write nothing: show parts, the picture's size, and time and memory by a few frames."
        ),
    ] = False,
    progress: Annotated[
        Literal["auto", "json"], typer.Option(help="json: lines of JSON on standard output, for other programs.")
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", "-y", help="Replace OUT if it exists.")] = False,
    job: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where finished parts are kept; by default beside OUT.")
    ] = None,
    keep_job: Annotated[bool, typer.Option("--keep-job", help="Keep that folder when OUT is there.")] = False,
) -> None:
    """Upscale videos. Sound, subtitles, chapters, timestamps, colour and aspect ratio are kept.

    Finished parts are kept on disk: after a crash or an interruption the same command goes on where it was.
    """
    explicit = {"model": model, "model_path": model_path, "device_index": device, "tile": tile, "segment": segment}
    explicit["fp16"] = 1 if fp16 else None
    pairs = [f"{key}={value}" for key, value in explicit.items() if value is not None]
    options = tuple(_split(option) for option in encoder_option or ())
    check_filter(filter_name)
    if len(paths) < 2:
        raise WrongArgumentError("Missing argument 'OUT'.")
    *sources, target = paths
    films = pair_up(sources, target) if are_several(sources, target) else None
    if films is not None and job is not None:
        raise WrongArgumentError("--job is the folder of one film; of several each is beside its OUT")
    order = Order(
        source=sources[0],
        target=target,
        filter_name=filter_name,
        arguments=parse_arguments(filter_name, [*pairs, *(arg or ())]),
        frames=_frames(start, end, frame),
        encoding=Encoding(encoder=encoder, crf=crf, options=options),
        size=_size(width, height, fit),
        rate=None if fps is None else _rate(fps),
    )
    console = Console(stderr=True)
    with _cluster(devices, ray, send_source=send_source) as cluster:
        shown = Telling(console, json=progress == "json")
        if films is not None:
            _upscale_all(order, films, shown, dry_run=dry_run, overwrite=overwrite, keep_job=keep_job, cluster=cluster)
        elif dry_run:
            _show_estimate(order, shown, overwrite=overwrite)
        else:
            upscale_file(order, shown, overwrite=overwrite, job=job, keep_job=keep_job, cluster=cluster)


@dataclass(frozen=True)
class Telling:
    """Where progress goes.

    Attributes:
        console: for people.
        json: as JSON on standard output instead, for programs.
    """

    console: Console
    json: bool = False

    def about(self, order: Order) -> Shown | Told:
        """What tells of one film."""
        return Told(order) if self.json else Shown(order, self.console)


def upscale_file(
    order: Order,
    telling: Telling,
    *,
    overwrite: bool,
    job: Path | None = None,
    keep_job: bool = False,
    cluster: Cluster | None = None,
) -> None:
    """Make the film and tell how far it is. See `make_film`."""
    begun = time.monotonic()
    with telling.about(order) as progress:
        film = make_film(order, overwrite=overwrite, job=job, keep_job=keep_job, progress=progress, cluster=cluster)
    progress.finished(film, time.monotonic() - begun)


def _upscale_all(
    order: Order,
    films: list[tuple[Path, Path]],
    telling: Telling,
    *,
    dry_run: bool,
    overwrite: bool,
    keep_job: bool,
    cluster: Cluster | None,
) -> None:
    """Make one film after the other; what fails is said and left behind."""
    made = before = failed = 0
    for source, target in films:
        one = replace(order, source=source, target=target)
        try:
            refuse_input(target, source)
            if target.exists() and not overwrite:
                before += 1
                continue
            if dry_run:
                _show_estimate(one, telling, overwrite=overwrite)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                upscale_file(one, telling, overwrite=overwrite, keep_job=keep_job, cluster=cluster)
        except (UserError, OSError) as error:
            failed += 1
            show(telling.console, f"vsvsr: {explain(error) if isinstance(error, OSError) else error}")
        else:
            made += 1
    show(
        telling.console,
        f"{made} of {len(films)} films {'looked at' if dry_run else 'made'}, {before} were there, {failed} failed",
    )
    if failed:
        raise typer.Exit(1)


def _show_estimate(order: Order, telling: Telling, *, overwrite: bool) -> None:
    """Show what a film will take."""
    order.check()
    if order.target.parent.is_dir():
        check_paths(order.source, order.target, overwrite=overwrite)
    with telling.about(order) as progress:
        film, segments, _ = order.open(progress.indexing)
        if wants_rgb(order.target):
            picture_files(film, order.target, overwrite=overwrite)
        else:
            tell_what_is_left_out(order, film, progress, encodes=True)
        found = estimate(order, film, segments)
    lines = [f"{order.target}: {len(film.frames)} frames of {found.picture} in {len(found.parts)} parts"]
    lines += [f"  {part}" for part in found.parts]
    taken = [f"memory {found.memory / 2**30:.1f} GiB"] * bool(found.memory)
    taken += [f"on the GPU {found.device_memory / 2**30:.1f} GiB"] * bool(found.device_memory)
    lines.append(
        f"  about {timedelta(seconds=round(found.seconds))} on one device, {found.frame_seconds:.3f} s a frame without "
        f"its encoder{''.join(f', {each}' for each in taken)}"
    )
    if telling.json:
        progress.note("\n".join(lines))
    else:
        typer.echo("\n".join(lines))


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


def _rate(text: str) -> Fraction:
    with suppress(ValueError, ZeroDivisionError):
        rate = Fraction(text)
        if Fraction(1, 1000) <= rate <= 1000 and rate.denominator < 1 << 31:
            return rate
    raise WrongArgumentError(f"--fps {text}: write frames a second, as 25 or 24000/1001")


def _cluster(devices: str | None, address: str | None, *, send_source: bool) -> AbstractContextManager[Cluster | None]:
    if devices is None and address is None:
        return nullcontext()
    if devices is not None and address is not None:
        raise WrongArgumentError("give --devices for this machine or --ray for a cluster, not both")
    try:
        indices = [] if devices is None else [int(index) for index in devices.split(",")]
    except ValueError:
        indices = [-2]
    if min(indices, default=0) < -1 or (-1 in indices and max(indices) >= 0):
        raise WrongArgumentError(f"--devices {devices}: write CUDA devices, as 0,1,2, or -1,-1 for the CPU")
    return Cluster(devices=indices, address=address or "", send_source=send_source)


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


def check_filter(name: str) -> None:
    """Refuse a filter that there is not.

    Raises:
        UserError: the plugin is not there; ``WrongArgumentError``: the filter is not.
    """
    if not hasattr(vs.core, "vsvsr"):
        raise UserError("the VapourSynth plugin is not loaded; vsvsr doctor says why")
    if name not in FILTERS:
        raise WrongArgumentError(f"--filter {name}: the filters are {', '.join(FILTERS)}")
