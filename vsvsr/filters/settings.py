"""Arguments of the filters: declared once, as frozen dataclasses, from which the plugin's signatures are made."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from vsvsr.errors import check

type Value = int | float | str
type Arguments = Mapping[str, Sequence[Value]]

_VAPOURSYNTH_TYPES: dict[object, str] = {
    bool: "int",
    int: "int",
    float: "float",
    str: "data",
    tuple[int, ...]: "int[]",
}

SMALLEST_TILE = 32


def _plain_type(annotation: object) -> object:
    """The type of a field, without the None that stands for "not given"."""
    if isinstance(annotation, types.UnionType):
        return next(member for member in typing.get_args(annotation) if member is not types.NoneType)
    return annotation


@dataclass(frozen=True, kw_only=True)
class SharedSettings:
    """What every filter takes.

    Attributes:
        model: which weights, by name.
        model_path: a weights file of the user's own instead.
        device_index: number of the CUDA device, -1 for the CPU; by default the first GPU if there is one.
        tile: width and height of spatial tiles in source pixels, each with a state of its own; 0 = whole frame.
        tile_pad: source pixels of context around every tile.
    """

    model: str = ""
    model_path: str = ""
    device_index: int | None = None
    tile: tuple[int, ...] = (0, 0)
    tile_pad: int = 16

    def __post_init__(self) -> None:
        sides = len(self.tile) == 2 and all(side == 0 or side >= SMALLEST_TILE for side in self.tile)
        check(sides, "tile", list(self.tile), f"width and height, each 0 (off) or at least {SMALLEST_TILE}")
        check(self.tile_pad >= 0, "tile_pad", self.tile_pad, "0 or more")
        check(
            not (self.model and self.model_path), "model_path", self.model_path, "either model or model_path, not both"
        )

    @classmethod
    def signature(cls) -> str:
        """The argument string that VapourSynth registers, clip included."""
        hints = typing.get_type_hints(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        return "clip:vnode;" + "".join(f"{name}:{_VAPOURSYNTH_TYPES[_plain_type(hints[name])]}:opt;" for name in names)

    @classmethod
    def parse(cls, arguments: Arguments) -> Self:
        """Settings from VapourSynth's arguments; every value comes as a list, even a single one."""
        hints = typing.get_type_hints(cls)
        values: dict[str, object] = {}
        for name, given in arguments.items():
            kind = _plain_type(hints[name])
            if kind is bool:
                check(given[0] in (0, 1), name, given[0], "0 or 1")
                values[name] = bool(given[0])
            else:
                values[name] = given[0] if isinstance(kind, type) else tuple(given)
        return cls(**values)  # type: ignore[arg-type]  # the types were checked by VapourSynth against the signature


@dataclass(frozen=True, kw_only=True)
class RecurrentSettings(SharedSettings):
    """What every unidirectional recurrent filter takes.

    Attributes:
        segment: frames between two restarts of the recurrence; 0 = never.
        warmup: frames before a segment on which the state is warmed up.
        state_cache: megabytes for kept states; they make seeks faster.
        preview: start cold a few frames before the one sought: fast, but approximate.
        scene_change: restart at frames with `_SceneChangePrev`.
    """

    segment: int = 240
    warmup: int = 15
    state_cache: int = 256
    preview: bool = False
    scene_change: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.segment >= 0, "segment", self.segment, "0 (never restart) or more")
        check(self.warmup >= 0, "warmup", self.warmup, "0 or more")
        fits = self.segment == 0 or self.warmup <= self.segment
        check(fits, "warmup", self.warmup, f"at most segment={self.segment}")
        check(self.state_cache >= 0, "state_cache", self.state_cache, "0 or more megabytes")


@dataclass(frozen=True, kw_only=True)
class ChunkedSettings(SharedSettings):
    """What every filter takes whose network looks both ways.

    Attributes:
        length: frames of a chunk.
        overlap: frames of context before and after a chunk.
        state_cache: megabytes for finished frames that may be asked for again.
        scene_change: end chunks at frames with `_SceneChangePrev`.
    """

    length: int = 30
    overlap: int = 5
    state_cache: int = 256
    scene_change: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.length >= 1, "length", self.length, "1 or more")
        check(self.overlap >= 0, "overlap", self.overlap, "0 or more")
        check(self.state_cache >= 0, "state_cache", self.state_cache, "0 or more megabytes")
