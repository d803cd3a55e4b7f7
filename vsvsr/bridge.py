"""The only module that the native plugin calls. Plain values in, plain values out."""

import atexit
import gc
import importlib.metadata
from collections.abc import Callable
from functools import partial

import vsvsr.engine.threads  # noqa: F401  before torch: it decides how torch's threads wait

# isort: split

import torch

from vsvsr.engine.device import gpus, sample_type
from vsvsr.engine.memory import is_out_of_memory, release
from vsvsr.engine.planes import Arrival, Output, Planes
from vsvsr.engine.worker import stop_workers, worker_of
from vsvsr.errors import UserError
from vsvsr.filters.clip import Clip
from vsvsr.filters.registry import FILTERS
from vsvsr.filters.session import FilterSession
from vsvsr.streaming import Source
from vsvsr.weights import folder

type Places = tuple[tuple[int, int], ...]
"""(address, stride in bytes) of each plane."""


class FilterInstance:
    """One filter of one script. Its methods may be called on any thread; the network runs on the device's own.

    The plugin frees it wherever VapourSynth drops the last reference to the filter: on any thread, the device's own
    included, with the interpreter's lock held or taken for it, and before or after Python's exit began. So neither
    ``counters`` nor ``__del__`` waits for a thread or takes a lock.

    Args:
        opened: session, device and scale.
        clip: what the frames look like.
    """

    def __init__(self, opened: FilterSession, clip: Clip) -> None:
        self._device = opened.device
        self._worker = worker_of(opened.device)
        self._session = opened.session
        self._scale = opened.scale
        self._segments = opened.segments
        self._tile = opened.tile
        self._clip = clip
        self._dtype = sample_type(clip.format)
        self._under_way: dict[int, Arrival] = {}
        """By the address of the first plane, which nothing else has as long as the frame is wanted."""

    def advance(self, n: int, wanted: list[int], frames: list[tuple[int, int, int, Places]]) -> list[int]:
        """Move towards frame ``n`` with ``frames``: (number, starts a scene, is approximate, planes), without planes
        where the clip cannot give the frame. Returns what is still missing.
        """
        sources = {
            index: Source(self._planes(places) if places else None, bool(cut), bool(approximate))
            for index, cut, approximate, places in frames
        }
        return self._run(lambda: self._session.advance(n, wanted, sources))

    def render(self, n: int, places: Places) -> list[str]:
        """Write frame ``n``, or have it on its way. Returns the properties that mark it: ``VSVSRApproximate`` where a
        preview made it or a frame that it derives from, ``VSVSRNonFinite`` where samples of source frame ``n`` were NaN
        or infinite; ``VSVSRUnderWay`` where `collect` is to be called.
        """
        output = Output(self._target(places))
        approximate = self._run(lambda: self._session.render(n, output))
        if output.arrival is not None:
            self._under_way[places[0][0]] = output.arrival
        marks = {
            "VSVSRApproximate": approximate,
            "VSVSRNonFinite": output.non_finite,
            "VSVSRUnderWay": output.arrival is not None,
        }
        return [name for name, applies in marks.items() if applies]

    def collect(self, places: Places) -> list[str]:
        """Wait for the frame that is under way to these places, and write it, on this thread. Returns further marks."""
        return ["VSVSRNonFinite"] * self._under_way.pop(places[0][0]).collect(self._target(places))

    def forget(self) -> None:
        """Drop everything that was derived from frames of the source: it may give others now."""
        self._worker.run(self._session.forget)

    def counters(self) -> list[tuple[str, int]]:
        """What has been done so far, where the filter starts afresh, and its tiles, by name."""
        grid = {"grid": self._segments.length, "grid_warmup": self._segments.warmup}
        tile = dict(zip(("tile_width", "tile_height"), self._tile, strict=True))
        return list({**self._session.counters(), **grid, **tile}.items())

    def __del__(self) -> None:
        # What lies on the device is freed on the device thread, which then gives the memory back.
        left = [self.__dict__.pop("_session"), self.__dict__.pop("_under_way", None)]
        self._worker.post(partial(_free, left, self._device))

    def _target(self, places: Places) -> Planes:
        height, width = self._clip.height * self._scale, self._clip.width * self._scale
        return Planes(height, width, self._dtype, places)

    def _planes(self, places: Places) -> Planes:
        return Planes(self._clip.height, self._clip.width, self._dtype, places)

    def _shrink(self) -> None:
        self._session.shrink()
        gc.collect()
        release(self._device)

    def _run[Result](self, function: Callable[[], Result]) -> Result:
        """Run on the device's thread; where its memory runs out, drop recomputable caches and retry once."""
        try:
            return self._worker.run(function)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # Out of here first: the error's traceback holds the tensors that were too many.
        self._worker.run(self._shrink)
        try:
            return self._worker.run(function)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            memory = "memory" if self._device.type == "cpu" else "the device's memory"
            raise UserError(f"{memory} is used up; give smaller tiles or caches, or close what else uses it") from None


def _free(sessions: list[object], device: torch.device) -> None:
    sessions.clear()
    release(device)


def open_filter(
    name: str, arguments: dict[str, list[int | float | str]], video_format: str, width: int, height: int, frames: int
) -> tuple[FilterInstance, int]:
    """Create a filter for a clip; returns it with its scale."""
    clip = Clip(format=video_format, width=width, height=height, frames=frames)
    with torch.device("cpu"):  # whatever the script has made torch's default
        opened = FILTERS[name].open(arguments, clip)
    return FilterInstance(opened, clip), opened.scale


def version() -> list[tuple[str, list[str]]]:
    """Versions, devices and the weights' folder, by name."""
    devices = ["cpu", *(gpu.name for gpu in gpus() if gpu.problem is None)]
    return [
        ("version", [importlib.metadata.version("vsvsr")]),
        ("torch", [str(torch.__version__)]),
        ("devices", devices),
        ("weights", [str(folder())]),
    ]


def describe(error: BaseException) -> str:
    """One line for the user."""
    text = " ".join(str(error).split()).encode(errors="backslashreplace").decode()
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def at_exit(hook: Callable[[], object]) -> None:
    """Have ``hook`` called before the interpreter goes; the plugin stays out of Python from then on."""
    # The last registered is called first: the threads go when nobody waits for them any more.
    atexit.register(stop_workers)
    atexit.register(hook)
