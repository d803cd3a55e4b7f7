"""``vsvsr plan``: where a film may be divided, for people who bring their own pipeline."""

import json
from pathlib import Path
from typing import Annotated

import typer

from vsvsr.cli.upscale import check_filter, parse_arguments
from vsvsr.files import refuse_input, written_whole
from vsvsr.jobs.order import Order
from vsvsr.jobs.parts import divide
from vsvsr.video.encoder import Encoding

app = typer.Typer()


@app.command()
def plan(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The video, or a folder of numbered pictures.")],
    *,
    filter_name: Annotated[str, typer.Option("--filter", help="Filter of core.vsvsr.")] = "FastReal",
    arg: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Any argument of the filter, as for upscale.")
    ] = None,
    scenes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the parts as scenes for av1an --scenes FILE.")
    ] = None,
) -> None:
    """Show where the filter starts afresh, as options of vspipe: parts that are rendered apart have the same pixels."""
    check_filter(filter_name)
    order = Order(
        source=source,
        target=Path("plan.mkv"),
        filter_name=filter_name,
        arguments=parse_arguments(filter_name, arg or []),
        frames=slice(None),
        encoding=Encoding(),
    )
    if scenes is not None:
        refuse_input(scenes, order.source)
    film, segments, _ = order.open(lambda percent: None)
    last = film.frames.stop
    parts = divide(segments.starts(0, last), last, film.source.timestamps)
    if scenes is None:
        for part in parts:
            typer.echo(f"-s {part.first} -e {part.last - 1}")
        return
    listed = [{"start_frame": part.first, "end_frame": part.last, "zone_overrides": None} for part in parts]
    with written_whole(scenes) as path:
        path.write_text(json.dumps({"frames": last, "scenes": listed, "split_scenes": listed}), encoding="utf-8")
