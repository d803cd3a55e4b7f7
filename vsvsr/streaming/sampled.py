"""A look at a few frames of the clip before the first one is made, for what holds for all of them."""

from collections.abc import Callable, Collection, Mapping, Sequence

from vsvsr.streaming.session import Session, Source


class SampledSession[Frame, Picture, Output]:
    """Gathers some frames of the clip, then hands everything to another session.

    Frames that the clip cannot give are left out, so what is learnt is a function of the clip alone.

    Args:
        session: makes the frames, once ``prepare`` has been called.
        samples: numbers of the frames to look at.
        read: a copy of a frame that outlives it.
        prepare: takes the samples, in order; may raise, and is called again by the next request then.
    """

    def __init__(
        self,
        session: Session[Frame, Output],
        *,
        samples: Sequence[int],
        read: Callable[[Frame], Picture],
        prepare: Callable[[list[Picture]], object],
    ) -> None:
        self._session = session
        self._samples = samples
        self._read = read
        self._prepare = prepare
        self._prepared = False
        self._pictures: dict[int, Picture | None] = {}

    def advance(self, n: int, wanted: Collection[int], sources: Mapping[int, Source[Frame]]) -> list[int]:
        """See `Session.advance`."""
        if not self._prepared:
            for i in self._samples:
                if i in sources and i not in self._pictures:
                    frame = sources[i].frame
                    self._pictures[i] = None if frame is None else self._read(frame)
            missing = [i for i in self._samples if i not in self._pictures]
            if missing:
                return missing
            self._prepare([picture for i in self._samples if (picture := self._pictures[i]) is not None])
            self._pictures.clear()
            self._prepared = True
        return self._session.advance(n, wanted, sources)

    def render(self, n: int, output: Output) -> bool:
        """See `Session.render`."""
        return self._session.render(n, output)

    def forget(self) -> None:
        """See `Session.forget`."""
        self._prepared = False
        self._pictures.clear()
        self._session.forget()

    def shrink(self) -> None:
        """See `Session.shrink`."""
        self._session.shrink()

    def counters(self) -> dict[str, int]:
        """See `Session.counters`."""
        return self._session.counters()
