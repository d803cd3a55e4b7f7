"""Streaming of models that look both ways: chunks on a fixed grid, with context on both sides."""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vsvsr.streaming.session import REQUEST_GROUP, CutDetector, Source

# A reader that is late at the border of two chunks, or two readers in turns, need two of them.
KEPT_CHUNKS = 2
# Sources decode forwards: what lies before a frame is read from so far back on.
_BACK = 64


class ChunkModel[Frame, Picture, Result, Output](Protocol):
    """A network that sees a stretch of frames at once."""

    def read(self, frame: Frame) -> Picture:
        """A copy of a frame that outlives it."""
        ...

    def run(self, pictures: Sequence[Picture], emit: range, first: int) -> Iterator[Result]:
        """Results for the pictures in ``emit``, one by one; the others are context.

        Args:
            pictures: the stretch.
            emit: indices into ``pictures``.
            first: number of the first picture in the clip.
        """
        ...

    def render(self, result: Result, output: Output) -> None:
        """Write the picture that ``result`` stands for."""
        ...

    def size(self, result: Result) -> int:
        """Bytes that ``result`` takes."""
        ...

    def forget(self) -> None:
        """Go on from nothing that was seen before."""
        ...


@dataclass(slots=True)
class _Chunk[Result]:
    """Frames ``emit`` of the clip: what is still to come, and what was made and is kept.

    Attributes:
        approximate: whether a frame of its stretch was made by a preview, before this filter.
    """

    emit: range
    remaining: Iterator[Result]
    approximate: bool
    made: int = 0
    results: dict[int, Result] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Seen[Picture]:
    """A frame of the clip; see `Source`.

    Attributes:
        look: what the detector of cuts keeps of it.
    """

    picture: Picture
    cut: bool
    approximate: bool
    look: object


class ChunkedSession[Frame, Picture, Result, Output]:
    """Runs chunk ``n // length`` for frame n, with ``overlap`` frames of context on both sides.

    A chunk, and its context, end at a scene cut and at a frame that the clip cannot give. So frame n is a function of
    the clip and the arguments alone. Results are kept until they are rendered, and beyond that within the budget.
    Frames beyond the scene of those that are asked for are not read, however long chunks are.

    Args:
        model: the network.
        frames: length of the clip.
        length: frames of a chunk.
        overlap: frames of context before and after.
        budget: bytes for results that have been rendered.
        scene_change: end chunks at frames marked as the start of a scene.
        detector: finds starts of scenes that are not marked.
    """

    def __init__(
        self,
        model: ChunkModel[Frame, Picture, Result, Output],
        *,
        frames: int,
        length: int,
        overlap: int,
        budget: int,
        scene_change: bool = True,
        detector: CutDetector[Frame] | None = None,
    ) -> None:
        self._model = model
        self._frames = frames
        self._length = length
        self._overlap = overlap
        self._budget = budget
        self._scene_change = scene_change
        self._detector = detector
        self._chunks: OrderedDict[int, _Chunk[Result]] = OrderedDict()
        self._rendered: OrderedDict[int, int] = OrderedDict()
        self._seen: dict[int, _Seen[Picture] | None] = {}
        self._found: dict[int, bool] = {}
        self._asked = 0
        self._short = False
        self._last: range | None = None
        self._counters = dict.fromkeys(("steps", "warmup_steps", "renders", "seeks", "replays", "restarts"), 0)

    def advance(self, n: int, wanted: Collection[int], sources: Mapping[int, Source[Frame]]) -> list[int]:
        """See `Session.advance`."""
        chunk = self._find(n)
        if chunk is None:
            scene, missing = self._gather(n, sources)
            if missing:
                return missing
            chunk = self._open(n, scene)
        try:
            while (made := chunk.emit.start + chunk.made) <= n:
                result = next(chunk.remaining)
                if made == n or made in wanted or not self._short:
                    chunk.results[made] = result
                chunk.made += 1
                self._counters["steps"] += 1
        except BaseException:
            del self._chunks[chunk.emit.start]
            raise
        return []

    def render(self, n: int, output: Output) -> bool:
        """See `Session.render`."""
        chunk = self._find(n)
        if chunk is None or n not in chunk.results:
            raise RuntimeError(f"frame {n} was asked for before it was ready")
        self._model.render(chunk.results[n], output)
        self._counters["renders"] += 1
        self._rendered[n] = self._model.size(chunk.results[n])
        self._rendered.move_to_end(n)
        self._trim(self._budget)
        return chunk.approximate

    def forget(self) -> None:
        """See `Session.forget`."""
        self._chunks.clear()
        self._rendered.clear()
        self._seen.clear()
        self._found.clear()
        self._last = None
        self._model.forget()

    def shrink(self) -> None:
        """See `Session.shrink`. From now on no result is kept that nobody waits for."""
        self._short = True
        for start, chunk in list(self._chunks.items()):
            if self._asked in chunk.results:  # its rendering failed, and is tried again
                chunk.results = {self._asked: chunk.results[self._asked]}
            else:
                del self._chunks[start]
        self._trim(self._budget)

    def counters(self) -> dict[str, int]:
        """See `Session.counters`.

        ``steps`` counts the frames made and ``warmup_steps`` those seen as context, ``renders`` the pictures, ``seeks``
        the chunks that did not follow the one before, ``replays`` those run again for results that were forgotten,
        ``restarts`` those that begin at a cut or behind a frame that the clip cannot give.
        """
        return dict(self._counters)

    def _find(self, n: int) -> _Chunk[Result] | None:
        """The kept chunk that holds frame ``n``, or can still make it."""
        self._asked = n
        for chunk in self._chunks.values():
            if n in chunk.emit and (n in chunk.results or n >= chunk.emit.start + chunk.made):
                self._chunks.move_to_end(chunk.emit.start)
                return chunk
        return None

    def _grid(self, n: int) -> tuple[range, range]:
        """The grid's chunk of frame ``n`` without and with its context, cuts left out of account."""
        start = n - n % self._length
        stop = min(start + self._length, self._frames)
        return range(start, stop), range(max(start - self._overlap, 0), min(stop + self._overlap, self._frames))

    def _gather(self, n: int, sources: Mapping[int, Source[Frame]]) -> tuple[range, list[int]]:
        """Keep what came.

        Returns:
            The part of frame ``n``'s stretch that is of its scene, as far as it is known, and which frames are missing
            to know it, the first few of them.
        """
        _, stretch = self._grid(n)
        self._seen = {i: seen for i, seen in self._seen.items() if i in stretch}
        self._found = {i: found for i, found in self._found.items() if i in self._seen}
        for i, source in sources.items():
            if i in stretch and self._seen.get(i) is None:
                self._seen[i] = self._see(source)
        first, last = n, n + 1
        while first > stretch.start and self._goes_on(first):
            first -= 1
        while last < stretch.stop and self._goes_on(last):
            last += 1
        missing: list[int] = []
        if first not in self._seen or (first > stretch.start and self._goes_on(first) is None):
            missing += (i for i in range(max(first - _BACK, stretch.start), first + 1) if i not in self._seen)
        if last < stretch.stop and self._goes_on(last) is None:
            missing += (i for i in range(last, min(last + REQUEST_GROUP, stretch.stop)) if i not in self._seen)
        return range(first, last), missing[:REQUEST_GROUP]

    def _see(self, source: Source[Frame]) -> _Seen[Picture] | None:
        if source.frame is None:
            return None
        look = None if self._detector is None else self._detector.look(source.frame)
        cut = self._scene_change and source.cut
        return _Seen(self._model.read(source.frame), cut, source.approximate, look)

    def _goes_on(self, n: int) -> bool | None:
        """Whether frame ``n`` is of the scene of the one before, and both can be had; None if it is not known yet."""
        if n not in self._seen:
            return None
        after = self._seen[n]
        if after is None or after.cut:
            return False
        if n - 1 not in self._seen:
            return None
        before = self._seen[n - 1]
        if before is None or self._detector is None:
            return before is not None
        if n not in self._found:
            self._found[n] = self._detector.is_cut(before.look, after.look)
        return not self._found[n]

    def _open(self, n: int, scene: range) -> _Chunk[Result]:
        grid, stretch = self._grid(n)
        emit = range(max(grid.start, scene.start), min(grid.stop, scene.stop))
        seen = [frame for i in scene if (frame := self._seen[i]) is not None]
        # The next stretch asks again for what the clip could not give.
        needed = min(scene.stop - 1, grid.stop - self._overlap) - _BACK
        self._seen = {i: frame for i, frame in self._seen.items() if frame is not None and i >= needed}
        chunk = _Chunk(
            emit,
            self._model.run(
                [frame.picture for frame in seen],
                range(emit.start - scene.start, emit.stop - scene.start),
                scene.start,
            ),
            any(frame.approximate for frame in seen),
        )
        self._counters["restarts"] += stretch.start < scene.start == emit.start
        self._count(emit, len(seen), again=self._chunks.pop(emit.start, None) is not None)
        self._chunks[emit.start] = chunk
        while len(self._chunks) > KEPT_CHUNKS:
            self._chunks.popitem(last=False)
        return chunk

    def _count(self, emit: range, seen: int, *, again: bool) -> None:
        self._counters["warmup_steps"] += seen - len(emit)
        self._counters["replays"] += again
        self._counters["seeks"] += again or not self._continues(emit)
        self._last = emit

    def _continues(self, emit: range) -> bool:
        """Whether a chunk goes on with playback; parts of a chunk that a cut divides may come in any order."""
        if self._last is None:
            return emit.start < self._length
        return 0 <= emit.start // self._length - self._last.start // self._length <= 1

    def _trim(self, budget: int) -> None:
        """Forget the results rendered longest ago, until those that were rendered fit into the budget."""
        kept = {n for chunk in self._chunks.values() for n in chunk.results}
        for n in [n for n in self._rendered if n not in kept]:
            del self._rendered[n]
        used = sum(self._rendered.values())
        while used > budget and len(self._rendered) > 1:
            n, size = self._rendered.popitem(last=False)
            used -= size
            for chunk in self._chunks.values():
                chunk.results.pop(n, None)
