"""The session that samples a few frames first, over one that records its calls."""

from collections.abc import Collection, Mapping

import pytest

from vsvsr.streaming import SampledSession, Source


class Recorder:
    """Needs no frames but the requested one."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.forgotten = 0

    def advance(self, n: int, wanted: Collection[int], sources: Mapping[int, Source[str]]) -> list[int]:
        self.asked.append(n)
        return [] if n in sources else [n]

    def render(self, n: int, output: list[int]) -> bool:
        output.append(n)
        return False

    def forget(self) -> None:
        self.forgotten += 1

    def shrink(self) -> None:
        self.asked.clear()

    def counters(self) -> dict[str, int]:
        return {"steps": len(self.asked)}


class Player:
    """Plays requests as the native plugin does: one call may ask for frames, the next one has them."""

    def __init__(self, *, broken: Collection[int] = ()) -> None:
        self.inner = Recorder()
        self.seen: list[list[str]] = []
        self.fetched: list[int] = []
        self.broken = broken
        self.session: SampledSession[str, str, list[int]] = SampledSession(
            self.inner, samples=(0, 4, 8), read=str.upper, prepare=self.seen.append
        )

    def get(self, n: int) -> int:
        """The frame that came out."""
        sources = {n: Source(f"frame {n}")}
        while missing := self.session.advance(n, {n}, sources):
            self.fetched += missing
            sources = {i: Source(None if i in self.broken else f"frame {i}") for i in (*missing, n)}
        output: list[int] = []
        assert not self.session.render(n, output)
        return output[0]


def test_the_samples_are_seen_once_in_order_before_the_first_frame_is_made() -> None:
    player = Player()
    assert [player.get(n) for n in (4, 2, 0)] == [4, 2, 0]
    assert player.seen == [["FRAME 0", "FRAME 4", "FRAME 8"]]
    assert player.fetched == [0, 8]
    assert player.inner.asked == [4, 2, 0]
    assert player.session.counters() == {"steps": 3}
    player.session.shrink()
    assert player.session.counters() == {"steps": 0}


def test_a_sample_that_the_clip_cannot_give_is_left_out_until_it_can() -> None:
    player = Player(broken=[8])
    assert [player.get(n) for n in (3, 5)] == [3, 5]
    assert player.seen == [["FRAME 0", "FRAME 4"]]
    player.broken = []
    player.session.forget()
    assert player.inner.forgotten == 1
    assert player.get(4) == 4
    assert player.seen[1:] == [["FRAME 0", "FRAME 4", "FRAME 8"]]


def test_what_goes_wrong_with_the_samples_reaches_every_request() -> None:
    def refuse(samples: list[str]) -> None:
        raise RuntimeError(f"{len(samples)} samples are not enough")

    session: SampledSession[str, str, list[int]] = SampledSession(
        Recorder(), samples=(1,), read=str.upper, prepare=refuse
    )
    for _ in range(2):
        with pytest.raises(RuntimeError, match="1 samples are not enough"):
            session.advance(1, {1}, {1: Source("frame 1")})
