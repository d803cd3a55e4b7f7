"""Arguments of the filters: declared once, as frozen dataclasses, from which everything that names them is made."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Self

from vsvsr.errors import check
from vsvsr.filters.arguments import Argument, arguments_of

SMALLEST_TILE = 32

_VAPOURSYNTH_TYPES: dict[type, str] = {bool: "int", int: "int", float: "float", str: "data", tuple: "int[]"}


@dataclass(frozen=True, kw_only=True)
class SharedSettings:
    """What every filter takes."""

    model: Annotated[
        str,
        Argument("published weights, by name; `vsvsr weights list` shows them", otherwise="the filter's own, if any"),
    ] = ""
    model_path: Annotated[str, Argument("weights file of your own, instead of `model`", path="file")] = ""
    device_index: Annotated[
        int | None,
        Argument(
            "CUDA device, -1 = CPU; without CUDA a GPU of another make that PyTorch has (not tried)",
            otherwise="the first CUDA device if there is one, else the CPU",
        ),
    ] = None
    tile: Annotated[
        tuple[int, ...],
        Argument(
            "width and height of spatial tiles, for less memory; each tile is a clip of its own, so pixels differ from "
            "those without tiles, visibly only where something crosses a border",
            unit="pixels of the source",
            at_least=SMALLEST_TILE,
            zero="off",
            each=("width", "height"),
        ),
    ] = (0, 0)
    tile_pad: Annotated[int, Argument("context around every tile", unit="pixels of the source", at_least=0)] = 16
    fp16: Annotated[
        bool,
        Argument("compute in half precision on a GPU: faster, half the memory; clips in RGBH are computed so anyway"),
    ] = False

    def __post_init__(self) -> None:
        for argument in self.arguments():
            argument.check(getattr(self, argument.name))
        single = not (self.model and self.model_path)
        check(single, "model_path", self.model_path, "either model or model_path, not both")

    @classmethod
    @functools.cache
    def arguments(cls) -> tuple[Argument, ...]:
        """What is declared of the fields, in their order."""
        return arguments_of(cls)

    @classmethod
    def signature(cls) -> str:
        """The argument string that VapourSynth registers, clip included."""
        optional = (f"{argument.name}:{_VAPOURSYNTH_TYPES[argument.kind]}:opt;" for argument in cls.arguments())
        return "clip:vnode;" + "".join(optional)

    @classmethod
    def parse(cls, arguments: Mapping[str, object]) -> Self:
        """Settings from arguments by name: values, or lists of values as VapourSynth passes them.

        Raises:
            UserError: a value of a wrong type or out of range; the message names the argument.
        """
        known = {argument.name: argument for argument in cls.arguments()}
        values = {name: known[name].read(given) for name, given in arguments.items()}
        return cls(**values)  # type: ignore[arg-type]  # each has the type of its field


@dataclass(frozen=True, kw_only=True)
class RecurrentSettings(SharedSettings):
    """What every unidirectional recurrent filter takes."""

    segment: Annotated[
        int | None,
        Argument(
            "frames between two restarts of the recurrence",
            unit="frames",
            at_least=0,
            zero="never restart",
            otherwise="what is stored with the weights",
        ),
    ] = None
    warmup: Annotated[
        int | None,
        Argument(
            "frames before a segment on which the state is warmed up, at most `segment`",
            unit="frames",
            at_least=0,
            otherwise="what is stored with the weights",
        ),
    ] = None
    state_cache: Annotated[
        int,
        Argument("memory for kept states, which make seeks faster and change no pixel", unit="megabytes", at_least=0),
    ] = 256
    preview: Annotated[
        bool,
        Argument(
            "start cold a few frames before the one you seek: fast scrubbing, approximate; such frames carry the "
            "property `VSVSRApproximate`"
        ),
    ] = False
    scene_change: Annotated[
        int,
        Argument(
            "restart at cuts: 1 = those that the filter finds and frames with the property `_SceneChangePrev`, "
            "2 = the latter only, 0 = none",
            at_least=0,
            at_most=2,
        ),
    ] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = not self.segment or self.warmup is None or self.warmup <= self.segment
        check(fits, "warmup", self.warmup, f"at most segment={self.segment}")


@dataclass(frozen=True, kw_only=True)
class ChunkedSettings(SharedSettings):
    """What every filter takes whose network looks both ways."""

    length: Annotated[
        int,
        Argument("frames of a chunk", unit="frames", at_least=0, zero="the whole clip, or scene, in memory at once"),
    ] = 30
    overlap: Annotated[int, Argument("frames of context before and after a chunk", unit="frames", at_least=0)] = 5
    state_cache: Annotated[
        int,
        Argument(
            "memory for finished frames that may be asked for again; changes no pixel", unit="megabytes", at_least=0
        ),
    ] = 256
    feature_cache: Annotated[
        int | None,
        Argument(
            "features of a chunk that may wait on the GPU, the others wait in host memory; changes no pixel",
            unit="megabytes",
            at_least=0,
            otherwise="a third of the memory that is free on the GPU at construction",
        ),
    ] = None
    scene_change: Annotated[
        int,
        Argument(
            "end chunks at cuts: 1 = those that the filter finds and frames with the property `_SceneChangePrev`, "
            "2 = the latter only, 0 = none",
            at_least=0,
            at_most=2,
        ),
    ] = 1
