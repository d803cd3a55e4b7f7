"""Calling a filter by name, with arguments that may be anything."""

import os
from collections.abc import Mapping

import vapoursynth as vs

from vsvsr.errors import UserError
from vsvsr.filters.registry import FILTERS
from vsvsr.filters.settings import SharedSettings


def checked(name: str, arguments: Mapping[str, object]) -> SharedSettings:
    """The settings that ``arguments`` of ``core.vsvsr.NAME`` are.

    Raises:
        vapoursynth.Error: an argument cannot be used.
    """
    try:
        settings: SharedSettings = FILTERS[name].settings.parse(arguments)
    except UserError as error:
        raise vs.Error(f"{name}: {error}") from None
    return settings


def apply(name: str, clip: vs.VideoNode, arguments: Mapping[str, object]) -> vs.VideoNode:
    """The output of ``core.vsvsr.NAME`` for ``clip``.

    The arguments are checked here already: on numbers and texts that VapourSynth cannot pass to a plugin it raises
    Python's own exceptions, which name no argument.

    Raises:
        vapoursynth.Error: an argument, the clip or the weights cannot be used.
    """
    checked(name, arguments)
    # Names of files need not be UTF-8; VapourSynth passes bytes as they are.
    texts = {
        argument: os.fspath(value).encode(errors="surrogateescape")
        for argument, value in arguments.items()
        if isinstance(value, str | os.PathLike)
    }
    return getattr(vs.core.vsvsr, name)(clip, **{**arguments, **texts})
