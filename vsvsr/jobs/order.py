"""What a user orders: everything that decides about the pixels and the file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import vapoursynth as vs

from vsvsr.errors import WrongArgumentError
from vsvsr.filters.apply import apply
from vsvsr.filters.arguments import exists
from vsvsr.filters.registry import FILTERS
from vsvsr.streaming import Segments
from vsvsr.video.encoder import Encoding
from vsvsr.video.film import Film, open_film
from vsvsr.video.size import Size


class Opened(NamedTuple):
    """A film that is ready to be asked for frames.

    Attributes:
        film: that film.
        segments: where its filter starts afresh.
        tile: width and height of the filter's tiles, which can depend on the memory that was free; 0 = everything.
    """

    film: Film
    segments: Segments
    tile: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Order:
    """A film to be made.

    Attributes:
        source: a video file, or a folder of numbered pictures.
        target: a video file, a picture, or with a name like ``frame_%04d.png`` numbered pictures.
        filter_name: of ``core.vsvsr``.
        arguments: of the filter.
        frames: the part to write; the pixels are those of the whole.
        encoding: how it is compressed.
        size: to scale the filter's result down to.
        rate: frames a second of a folder of pictures, otherwise 25.
    """

    source: Path
    target: Path
    filter_name: str
    arguments: Mapping[str, object]
    frames: slice
    encoding: Encoding
    size: Size | None = None
    rate: Fraction | None = None

    @property
    def files(self) -> dict[str, Path]:
        """The arguments that are files or folders."""
        given = {
            argument: Path(str(self.arguments[argument.name]))
            for argument in FILTERS[self.filter_name].settings.arguments()
            if (argument.path or argument.listed) and self.arguments.get(argument.name)
        }
        return {argument.name: path for argument, path in given.items() if argument.path or exists(path, "file")}

    def check(self) -> None:
        """Refuse what cannot give the pixels of playback.

        Raises:
            WrongArgumentError: a preview is asked for.
        """
        if self.arguments.get("preview"):
            raise WrongArgumentError("preview=1 is for seeking in an editor; its frames are approximate")

    def open(self, on_index: Callable[[int], None]) -> Opened:
        """The film, ready to be asked for frames.

        Args:
            on_index: hears how far the source is indexed, in percent.

        Raises:
            UserError: something about the source or the filter.
        """
        stats: dict[str, int] = {}

        def change(clip: vs.VideoNode) -> vs.VideoNode:
            # Half the bytes to the GPU and back as well.
            source = clip.resize.Point(format=vs.RGBH) if self.arguments.get("fp16") else clip
            changed = apply(self.filter_name, source, self.arguments)
            stats.update(vs.core.vsvsr.Stats(changed))
            return changed

        film = open_film(
            self.source, self.target, change, frames=self.frames, size=self.size, rate=self.rate, on_index=on_index
        )
        segments = Segments(length=stats["grid"], warmup=stats["grid_warmup"])
        return Opened(film, segments, (stats["tile_width"], stats["tile_height"]))
