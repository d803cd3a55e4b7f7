"""``vsvsr demo``: the main job on a clip that comes with the package."""

from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from vsvsr.cli.upscale import Telling, upscale_file
from vsvsr.files import written_whole
from vsvsr.jobs.order import Order
from vsvsr.video.encoder import Encoding
from vsvsr.video.source import Pictures, open_video

FILTER = "FastReal"
_FRAME = 60
"""Shown in the picture: well inside the clip, so that the recurrence has seen what came before."""
_CROP = (240, 20, 720, 500)
"""Left, top, right, bottom in the upscaled frame."""
_BAR = 32

app = typer.Typer()


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder to write into; it is made if need be.")] = Path("vsvsr-demo"),
) -> None:
    """Upscale a bundled clip (4 s of Big Buck Bunny, 320x180) and write the video and a before/after picture."""
    output.mkdir(parents=True, exist_ok=True)
    video, picture = output / "bigbuckbunny_1280x720.mp4", output / "before_after.png"
    with as_file(files("vsvsr").joinpath("assets", "bigbuckbunny_320x180.mp4")) as source:
        order = Order(
            source=source,
            target=video,
            filter_name=FILTER,
            arguments={},
            frames=slice(None),
            encoding=Encoding(),
        )
        upscale_file(order, Telling(Console(stderr=True)), overwrite=True)
        with written_whole(picture) as path:
            before_and_after(source, video).save(path)
    typer.echo(f"video          {video.resolve()}")
    typer.echo(f"before/after   {picture.resolve()}")


def before_and_after(source: Path, upscaled: Path) -> Image.Image:
    """The same piece of one frame side by side: ``source`` enlarged by bicubic interpolation, and ``upscaled``."""
    after = _picture(upscaled)
    before = _picture(source).resize(after.size, Image.Resampling.BICUBIC)
    left, top, right, bottom = _CROP
    width = right - left
    sheet = Image.new("RGB", (2 * width, bottom - top + _BAR))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    for column, (label, image) in enumerate((("bicubic", before), (FILTER, after))):
        sheet.paste(image.crop(_CROP), (column * width, _BAR))
        pen.text((column * width + 10, 5), label, font=font)
    return sheet


def _picture(path: Path) -> Image.Image:
    return Image.fromarray(Pictures(open_video(path).clip)[_FRAME])
