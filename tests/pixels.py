"""Frames as bytes, and ways to ask for them."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import Future

import numpy as np
import vapoursynth as vs


def digest(frame: vs.VideoFrame) -> str:
    """SHA-256 of the pixels of all planes."""
    hasher = hashlib.sha256()
    for plane in range(frame.format.num_planes):
        hasher.update(np.ascontiguousarray(np.asarray(frame[plane])).tobytes())
    return hasher.hexdigest()


def play(clip: vs.VideoNode, numbers: Iterable[int] | None = None, in_flight: int = 1) -> dict[int, str]:
    """Digests of the frames asked for in this order, with up to ``in_flight`` requests at once."""
    result: dict[int, str] = {}
    waiting: list[tuple[int, Future[vs.VideoFrame]]] = []

    def collect() -> None:
        n, future = waiting.pop(0)
        with future.result(timeout=300) as frame:
            fresh = digest(frame)
        assert result.setdefault(n, fresh) == fresh, f"frame {n} came out in two forms"

    for n in range(clip.num_frames) if numbers is None else numbers:
        waiting.append((n, clip.get_frame_async(n)))
        if len(waiting) >= in_flight:
            collect()
    while waiting:
        collect()
    return result


def same(result: dict[int, str], reference: dict[int, str]) -> bool:
    """Whether there are frames and all equal the reference's.

    Raises:
        AssertionError: some differ; the message has their numbers.
    """
    wrong = sorted(n for n, fresh in result.items() if reference[n] != fresh)
    assert not wrong, f"frames {wrong} differ"
    return len(result) > 0


def planes(frame: vs.VideoFrame) -> np.ndarray:
    """The frame as ``(3, h, w)`` fp32."""
    return np.stack([np.asarray(frame[plane], dtype=np.float32) for plane in range(frame.format.num_planes)])
