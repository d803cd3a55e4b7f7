"""From a clip's own colours to RGB and back, by its tags: matrix, range, chroma placement."""

from dataclasses import replace

import vapoursynth as vs

from vsvsr.video.matroska import Colour

# In ITU-T H.273.
_RGB = 0
_BT709 = 1
_UNSPECIFIED = 2
_RESERVED = 3
_BT601 = 6
_SRGB = 13

_PRIMARIES = {1: 1, 5: 5, 6: 6, 7: 7, 9: 9, 10: 9}
"""Those that go with a matrix."""
_TRANSFER = {1: 1, 5: 6, 6: 6, 7: 7, 9: 14, 10: 14}


def colour_of(clip: vs.VideoNode, props: "vs.FrameProps") -> Colour:
    """The tags of a clip, given the properties of one frame.

    YUV and grey without a usable matrix count as BT.709 when wider than 1024 or higher than 576, else as BT.601, as
    players do. Untagged RGB has full range, everything else limited range.
    """
    is_rgb = clip.format.color_family == vs.RGB
    tags = {name: value for name, value in props.items() if isinstance(value, int)}  # others are no tags
    matrix = tags.get("_Matrix", _UNSPECIFIED)
    if is_rgb:
        matrix = _BT709
    elif matrix in (_RGB, _UNSPECIFIED, _RESERVED):
        matrix = _BT709 if clip.width > 1024 or clip.height > 576 else _BT601
    return Colour(
        matrix=matrix,
        transfer=tags.get("_Transfer", _UNSPECIFIED),
        primaries=tags.get("_Primaries", _UNSPECIFIED),
        full_range=tags.get("_Range", int(is_rgb)) == 1,
        chroma_location=tags.get("_ChromaLocation"),
    )


def completed(colour: Colour, video_format: vs.VideoFormat) -> Colour:
    """With a transfer and primaries that go with the matrix, where there are none: previewers show nothing without."""
    transfer, primaries = colour.transfer, colour.primaries
    if transfer == _UNSPECIFIED:
        transfer = _SRGB if video_format.color_family == vs.RGB else _TRANSFER.get(colour.matrix, _BT709)
    if primaries == _UNSPECIFIED:
        primaries = _PRIMARIES.get(colour.matrix, _BT709)
    return replace(colour, transfer=transfer, primaries=primaries)


def to_float_rgb(clip: vs.VideoNode, colour: Colour, *, half: bool = False) -> vs.VideoNode:
    """RGBS, or RGBH: full range, by the matrix of ``colour``; range and chroma placement are read from each frame."""
    # Given as an argument, some tags would still be refused.
    clip = clip.std.SetFrameProps(_Matrix=_RGB if clip.format.color_family == vs.RGB else colour.matrix)
    return clip.resize.Bicubic(format=vs.RGBH if half else vs.RGBS)


def from_float_rgb(clip: vs.VideoNode, video_format: vs.VideoFormat, colour: Colour) -> vs.VideoNode:
    """``video_format``, converted by and tagged with ``colour``."""
    is_rgb = video_format.color_family == vs.RGB
    subsampled = (video_format.subsampling_w, video_format.subsampling_h) != (0, 0)
    return clip.resize.Bicubic(
        format=video_format.id,
        matrix=None if is_rgb else colour.matrix,
        range_s="full" if colour.full_range else "limited",
        chromaloc=colour.chroma_location if subsampled else None,
    )
