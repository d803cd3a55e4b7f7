"""The size that people want, made from the size that a network gives."""

from dataclasses import dataclass

import vapoursynth as vs

from vsvsr.errors import WrongArgumentError
from vsvsr.video.source import Video

_UNSPECIFIED = 2  # in ITU-T H.273
_BT709 = 1
_SRGB = 13


@dataclass(frozen=True, kw_only=True)
class Size:
    """A size to scale down to; sides that are not given follow, with the shape of a sample kept.

    Attributes:
        width: in samples, even; None follows from the height.
        height: in lines, even; None follows from the width.
        fit: width and height are limits, and what is smaller stays as it is.
    """

    width: int | None = None
    height: int | None = None
    fit: bool = False

    def of(self, width: int, height: int) -> tuple[int, int]:
        """The size of a clip of ``width x height``, both even.

        Raises:
            WrongArgumentError: it would have to be enlarged, or next to nothing would be left.
        """
        share = min(wanted / given for wanted, given in ((self.width, width), (self.height, height)) if wanted)
        if share > 1 and self.fit:
            share = 1.0
        if share > 1:
            raise WrongArgumentError(f"{self}: the filter makes {width}x{height}, which would have to be enlarged")
        scaled = (_even(width * share), _even(height * share))
        if min(scaled) < 16:
            raise WrongArgumentError(f"{self}: {scaled[0]}x{scaled[1]} is too small; allowed: sides of 16 and more")
        return scaled

    def __str__(self) -> str:
        if self.fit:
            return f"--fit {self.width}x{self.height}"
        return f"--width {self.width}" if self.width else f"--height {self.height}"


def scaled_down(clip: vs.VideoNode, source: Video, size: Size) -> vs.VideoNode:
    """An RGB clip scaled down in linear light, as RGBS; unchanged if it has that size.

    Light adds up, numbers after a transfer function do not: fine bright detail would get darker.

    Raises:
        WrongArgumentError: see `Size.of`.
    """
    width, height = size.of(clip.width, clip.height)
    if (width, height) == (clip.width, clip.height):
        return clip
    transfer = source.colour.transfer
    if transfer == _UNSPECIFIED:
        transfer = _SRGB if source.file_format.color_family == vs.RGB else _BT709
    light = clip.resize.Bicubic(format=vs.RGBS, transfer_in=transfer, transfer_s="linear")
    return light.resize.Bicubic(width, height).resize.Bicubic(transfer_in_s="linear", transfer=transfer)


def _even(length: float) -> int:
    return 2 * round(length / 2)
