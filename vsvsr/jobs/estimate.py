"""What a film will take, before it is made."""

import sys
import time
from dataclasses import dataclass
from itertools import islice

import vapoursynth as vs

from vsvsr.filters.registry import FILTERS
from vsvsr.filters.settings import ChunkedSettings
from vsvsr.jobs.order import Order
from vsvsr.jobs.parts import Part, divide
from vsvsr.streaming import Segments
from vsvsr.video.film import Film
from vsvsr.video.source import one_line_errors

_FRAMES = 8
"""How many frames are measured, after two for which memory is got and algorithms are chosen."""

_FIRST = 2


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a film will take on one device.

    Attributes:
        parts: it is made in these.
        picture: size and format of its frames.
        frame_seconds: what a frame took, decoded, filtered and converted, not encoded.
        seconds: for all frames, with the warm-ups of the segments.
        memory: bytes that the process took; 0 where that is not known.
        device_memory: bytes that it took on the GPU.
    """

    parts: list[Part]
    picture: str
    frame_seconds: float
    seconds: float
    memory: int
    device_memory: int


def estimate(order: Order, film: Film, segments: Segments) -> Estimate:
    """Divide a film and measure its first frames, which writes nothing.

    Args:
        order: what is to be made.
        film: what it opened.
        segments: where its filter starts afresh.

    Raises:
        UserError: a frame failed.
    """
    first, last = film.frames.start, film.frames.stop
    parts = divide(segments.starts(first, last), last, film.source.timestamps)
    chunked = isinstance(FILTERS[order.filter_name].settings.parse(order.arguments), ChunkedSettings)
    # A chunk is computed at once, when its first frame is asked for.
    skipped, measured = (0, segments.length or len(film.frames)) if chunked else (_FIRST, _FRAMES)
    frame_seconds = _seconds_a_frame(film.clip[first:last], skipped, measured)
    warmup = 0 if chunked else segments.warmup * sum(part.first > 0 for part in parts)
    return Estimate(
        parts=parts,
        picture=f"{film.clip.width}x{film.clip.height} {film.clip.format.name}",
        frame_seconds=frame_seconds,
        seconds=frame_seconds * (len(film.frames) + warmup),
        memory=_resident(),
        device_memory=_on_device(),
    )


def _seconds_a_frame(clip: vs.VideoNode, skipped: int, measured: int) -> float:
    skipped = min(skipped, clip.num_frames - 1)
    with one_line_errors():
        frames = clip[: skipped + measured].frames(close=True)
        for _ in islice(frames, skipped):
            pass
        begun = time.perf_counter()
        count = sum(1 for _ in frames)
    return (time.perf_counter() - begun) / count


def _resident() -> int:
    """The most memory that this process had."""
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _on_device() -> int:
    import torch

    if not torch.cuda.is_available():
        return 0
    return max(torch.cuda.max_memory_reserved(device) for device in range(torch.cuda.device_count()))
