"""A clip of any colours through a filter and back."""

from collections.abc import Mapping

import vapoursynth as vs

from vsvsr.errors import UserError
from vsvsr.filters.apply import apply, checked
from vsvsr.filters.registry import FILTERS
from vsvsr.video.colour import colour_of, completed, from_float_rgb, to_float_rgb


def upscale(name: str, clip: vs.VideoNode, arguments: Mapping[str, object]) -> vs.VideoNode:
    """See `vsvsr.upscale`."""
    try:
        _check(name, clip, arguments)
        with clip.get_frame(0) as frame:
            props = frame.props
            if props.get("_FieldBased", 0):
                raise UserError(
                    "the clip is interlaced; deinterlace it first, or, if only its tag is wrong, use "
                    "clip.std.SetFieldBased(0)"
                )
            colour = completed(colour_of(clip, props), clip.format)
        rgb = to_float_rgb(clip, colour, half=checked(name, arguments).fp16)
    except UserError as error:
        raise vs.Error(f"upscale: {error}") from None
    output = from_float_rgb(apply(name, rgb, arguments), clip.format, colour)
    return output.std.SetFrameProps(_Transfer=colour.transfer, _Primaries=colour.primaries)


def _check(name: str, clip: vs.VideoNode, arguments: Mapping[str, object]) -> None:
    if not isinstance(name, str) or name not in FILTERS:
        raise UserError(f"name={name!r} is not possible; allowed: {' or '.join(FILTERS)}")
    known = [argument.name for argument in FILTERS[name].settings.arguments()]
    unknown = next((argument for argument in arguments if argument not in known), None)
    if unknown is not None:
        raise UserError(f"{unknown} is no argument of {name}; those are {', '.join(known)}")
    if not isinstance(clip, vs.VideoNode):
        raise UserError(f"clip is {type(clip).__name__}; give a video clip")
    if not clip.format.id or not clip.width or not clip.height:
        raise UserError("the clip's format or size varies; make it constant")
