"""Streaming of unidirectional recurrent models: frame n is a function of the clip and the arguments alone."""

import bisect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from vsvsr.streaming.segments import Segments
from vsvsr.streaming.session import REQUEST_GROUP, CutDetector, Source
from vsvsr.streaming.states import Checkpoint, StateStore

# A preview starts cold this many frames before the one that is looked at.
PREVIEW_LEAD = 4


class RecurrentModel[Frame, State, Output](Protocol):
    """A network that sees one frame at a time. States are immutable: a step returns a new one."""

    def step(self, state: State | None, frame: Frame) -> State:
        """The state after ``frame``; from None the recurrence starts cold."""
        ...

    def render(self, state: State, output: Output) -> None:
        """Write the picture of the frame that ``state`` saw last."""
        ...

    def size(self, state: State) -> int:
        """Bytes that ``state`` takes."""
        ...


@dataclass(slots=True)
class _Request[State]:
    """A request on its way: the frames up to ``target`` that are still to be seen, from ``next`` on.

    Attributes:
        behind_gap: whether the clip cannot give the frame before ``next``.
        scout: a far seek looks backwards for a restart first, from here; None once it has.
        after: of frame ``scout``, whether it is marked as the start of a scene, and the detector's look at it.
    """

    target: int
    next: int
    checkpoint: Checkpoint[State] | None
    approximate: bool
    behind_gap: bool = False
    scout: int | None = None
    after: tuple[bool, object] = (False, None)


class RecurrentSession[Frame, State, Output]:
    """Rolls the state to the frame that is asked for, from the best state it has kept.

    The recurrence that leads to frame n starts cold at the last cut at or before n, behind the last frame before n that
    the clip cannot give, or at the warm-up start of n's segment, whichever is latest. A kept state
    serves n only if it started at that very frame, so every order of requests gives the same picture. The pictures
    themselves are not kept: a frame that was passed on the way to another, and is asked for later, is rendered from its
    kept state, which is smaller than the picture.

    Args:
        model: the network.
        segments: the grid of restarts.
        budget: bytes for kept states.
        preview: after a seek start cold a few frames before the one asked for; such frames are approximate.
        scene_change: restart at frames marked as the start of a scene.
        detector: finds starts of scenes that are not marked.
    """

    def __init__(
        self,
        model: RecurrentModel[Frame, State, Output],
        segments: Segments,
        *,
        budget: int,
        preview: bool = False,
        scene_change: bool = True,
        detector: CutDetector[Frame] | None = None,
    ) -> None:
        self._model = model
        self._segments = segments
        self._preview = preview
        self._scene_change = scene_change
        self._detector = detector
        self._store: StateStore[State] = StateStore(budget)
        self._request: _Request[State] | None = None
        self._last: Checkpoint[State] | None = None
        self._cuts: list[int] = []
        self._counters = dict.fromkeys(
            ("steps", "warmup_steps", "renders", "seeks", "checkpoint_hits", "replays", "restarts"), 0
        )

    def advance(self, n: int, wanted: Collection[int], sources: Mapping[int, Source[Frame]]) -> list[int]:
        """See `Session.advance`."""
        if self._request is None or self._request.target != n:
            self._request = self._begin(n, wanted)
        request = self._request
        try:
            if request.scout is not None and (missing := self._scout(request, sources)):
                return missing
            while request.next <= n:
                if request.next not in sources:
                    return list(range(request.next, min(request.next + REQUEST_GROUP, n + 1)))
                self._step(request, sources[request.next], wanted)
        except BaseException:
            self._request = None
            raise
        return []

    def render(self, n: int, output: Output) -> bool:
        """See `Session.render`."""
        request = self._request
        if request is None or request.checkpoint is None or request.checkpoint.index != n:
            raise RuntimeError(f"frame {n} was asked for before it was ready")
        self._model.render(request.checkpoint.state, output)
        self._request = None
        self._counters["renders"] += 1
        return request.checkpoint.approximate or request.checkpoint.inherited

    def forget(self) -> None:
        """See `Session.forget`."""
        self._store.clear()
        self._request = self._last = None
        self._cuts.clear()

    def shrink(self) -> None:
        """See `Session.shrink`."""
        self._store.shrink()

    def counters(self) -> dict[str, int]:
        """See `Session.counters`.

        ``steps`` and ``warmup_steps`` count frames seen inside segments and in the warm-up before them, ``renders`` the
        pictures, ``seeks`` the requests that did not go on with playback, ``checkpoint_hits`` those of them that began
        from a kept state, ``replays`` the steps that they spent before the frame that was asked for, ``restarts`` the
        steps at a cut or behind a frame that the clip cannot give.
        """
        return dict(self._counters)

    def _begin(self, n: int, wanted: Collection[int]) -> _Request[State]:
        base = self._base(n)
        start = base.index + 1 if base else self._segments.origin(n)
        cut = self._last_cut(n)
        if cut >= start:
            base, start = None, cut
        approximate = False
        if self._preview and n - start > PREVIEW_LEAD:
            approximate = True
            base = self._near(n)
            start = base.index + 1 if base else n - PREVIEW_LEAD
        request = _Request(n, start, base, approximate)
        if start <= n and not self._continues(n, base, wanted):
            if self._scene_change and n - start >= REQUEST_GROUP:
                request.scout = n
            else:
                self._count_seek(request)
        return request

    def _count_seek(self, request: _Request[State]) -> None:
        self._counters["seeks"] += 1
        self._counters["checkpoint_hits"] += request.checkpoint is not None
        self._counters["replays"] += request.target - request.next

    def _scout(self, request: _Request[State], sources: Mapping[int, Source[Frame]]) -> list[int]:
        """Look for the last restart before the target, so that nothing before it is rolled up. Returns the frames that
        this lacks.
        """
        n = request.scout
        assert n is not None
        if n == request.target:
            request.after = self._look(sources[n])
        while n > request.next:
            marked, look = request.after
            if not marked and n - 1 not in sources:
                request.scout = n
                return list(range(max(request.next, n - REQUEST_GROUP), n))
            gap = not marked and sources[n - 1].frame is None
            if not marked and not gap:
                request.after = self._look(sources[n - 1])
                marked = self._detector is not None and self._detector.is_cut(request.after[1], look)
            if marked:
                self._add_cut(n)
            if marked or gap:
                request.next, request.checkpoint, request.behind_gap = n, None, gap
                break
            n -= 1
        request.scout = None
        self._count_seek(request)
        return []

    def _look(self, source: Source[Frame]) -> tuple[bool, object]:
        """Whether a frame is marked as the start of a scene, and the detector's look at it."""
        look = None if self._detector is None or source.frame is None else self._detector.look(source.frame)
        return self._scene_change and source.cut, look

    def _base(self, n: int) -> Checkpoint[State] | None:
        """The latest exact state that lies on frame ``n``'s own recurrence."""
        origin = self._segments.origin(n)
        fitting = (
            checkpoint
            for checkpoint in self._store
            if not checkpoint.approximate
            and checkpoint.index <= n
            and (checkpoint.origin == origin or (checkpoint.anchored and checkpoint.origin > origin))
        )
        return max(fitting, key=lambda checkpoint: checkpoint.index, default=None)

    def _near(self, n: int) -> Checkpoint[State] | None:
        """A preview's state shortly before ``n`` in the same segment."""
        fitting = (
            checkpoint
            for checkpoint in self._store
            if checkpoint.approximate
            and n - PREVIEW_LEAD <= checkpoint.index <= n
            and self._segments.start(checkpoint.index) == self._segments.start(n)
        )
        return max(fitting, key=lambda checkpoint: checkpoint.index, default=None)

    def _continues(self, n: int, base: Checkpoint[State] | None, wanted: Collection[int]) -> bool:
        """Whether ``n`` goes on with playback, as opposed to a seek."""
        last = self._last
        if last is None:
            return n < REQUEST_GROUP
        if base is None or base is last:
            near = last.index < n <= last.index + REQUEST_GROUP
            return near or (last.index < n and all(frame in wanted for frame in range(last.index + 1, n)))
        return all(frame in wanted for frame in range(base.index + 1, n))

    def _step(self, request: _Request[State], source: Source[Frame], wanted: Collection[int]) -> None:
        n = request.next
        request.next = n + 1
        if source.frame is None:
            request.checkpoint, request.behind_gap = None, True
            return
        marked, look = self._look(source)
        before = request.checkpoint
        cut = marked or self._last_cut(n) == n
        if before is not None and not cut and self._detector is not None:
            cut = self._detector.is_cut(before.look, look)
        if cut:
            self._add_cut(n)
        restart = cut or request.behind_gap
        if restart:
            before = None
        if restart:
            # Exact even in a preview.
            request.approximate, request.behind_gap = False, False
        state = self._model.step(before.state if before else None, source.frame)
        checkpoint = Checkpoint(
            index=n,
            origin=before.origin if before else n,
            anchored=before.anchored if before else restart,
            approximate=request.approximate,
            inherited=source.approximate or (before is not None and before.inherited),
            look=look,
            state=state,
        )
        self._counters["steps" if n >= self._segments.start(request.target) else "warmup_steps"] += 1
        self._counters["restarts"] += restart
        self._store.add(checkpoint, self._model.size(checkpoint.state), wanted)
        request.checkpoint = self._last = checkpoint

    def _add_cut(self, n: int) -> None:
        place = bisect.bisect_left(self._cuts, n)
        if place == len(self._cuts) or self._cuts[place] != n:
            self._cuts.insert(place, n)

    def _last_cut(self, n: int) -> int:
        """The latest known cut at or before ``n``; -1 when there is none."""
        place = bisect.bisect_right(self._cuts, n)
        return self._cuts[place - 1] if place else -1
