"""The session of bidirectional models, over a model whose results reveal which frames it saw."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from vsvsr.streaming import ChunkedSession, Source

LENGTH, OVERLAP, FRAMES = 10, 3, 95


class WitnessModel:
    """The result of a frame is its own number and the first and the last frame of the stretch it was made in."""

    def __init__(self) -> None:
        self.made: Counter[int] = Counter()
        self.fail_at: int | None = None
        self.forgotten = 0

    def read(self, frame: int) -> int:
        return frame

    def run(self, pictures: Sequence[int], emit: range, first: int) -> Iterator[tuple[int, int, int]]:
        assert list(pictures) == list(range(first, first + len(pictures)))
        for i in emit:
            if pictures[i] == self.fail_at:
                self.fail_at = None
                raise RuntimeError("the model stumbled")
            self.made[pictures[i]] += 1
            yield pictures[i], pictures[0], pictures[-1]

    def render(self, result: tuple[int, int, int], output: list[int]) -> None:
        output[:] = result

    def size(self, result: tuple[int, int, int]) -> int:
        return 1000

    def forget(self) -> None:
        self.forgotten += 1


def witness(n: int, cuts: set[int]) -> list[int]:
    """The frames from which frame ``n`` must be computed, by the definition."""
    start = n - n % LENGTH
    first = max([start - OVERLAP, 0, *(cut for cut in cuts if cut <= n)])
    last = min([start + LENGTH + OVERLAP, FRAMES, *(cut for cut in cuts if cut > n)])
    return [n, first, last - 1]


class Player:
    """Plays requests as the native plugin does."""

    def __init__(
        self,
        *,
        cuts: Sequence[int] = (),
        broken: Sequence[int] = (),
        budget: int = 100_000,
        frames: int = FRAMES,
        length: int = LENGTH,
    ) -> None:
        self.model = WitnessModel()
        self.session: ChunkedSession[int, int, tuple[int, int, int], list[int]] = ChunkedSession(
            self.model, frames=frames, length=length, overlap=OVERLAP, budget=budget
        )
        self.cuts, self.broken = set(cuts), set(broken)
        self.previewed: set[int] = set()
        self.approximate = False
        self.fetched: Counter[int] = Counter()

    def get(self, n: int) -> list[int]:
        sources = {n: self._source(n)}
        while missing := self.session.advance(n, {n}, sources):
            assert len(missing) <= 8
            self.fetched.update(missing)
            sources = {i: self._source(i) for i in {*missing, n}}
        output: list[int] = []
        self.approximate = self.session.render(n, output)
        return output

    def _source(self, n: int) -> Source[int]:
        return Source(None if n in self.broken else n, n in self.cuts, n in self.previewed)


def test_linear_playback_makes_each_frame_once_and_fetches_each_source_once() -> None:
    player = Player()
    for n in range(FRAMES):
        assert player.get(n) == witness(n, set())
    counters = player.session.counters()
    assert counters["steps"] == counters["renders"] == FRAMES
    assert counters["warmup_steps"] == 9 * 2 * OVERLAP
    assert counters["seeks"] == counters["replays"] == 0
    assert set(player.model.made.values()) == {1}
    assert max(player.fetched.values()) == 1


@pytest.mark.parametrize("budget", [0, 3000, 100_000])
def test_any_order_of_requests_gives_the_stretches_of_linear_playback(budget: int) -> None:
    rng = random.Random(budget)
    cuts = {9, 10, 33, 34, 57, 88}
    player = Player(cuts=sorted(cuts), budget=budget)
    position = 0
    for _ in range(600):
        position = (
            rng.choice([position + 1, position - 1, position + rng.randint(-12, 12), rng.randrange(FRAMES)]) % FRAMES
        )
        assert player.get(position) == witness(position, cuts)


def test_frames_late_at_the_border_of_two_chunks_cost_nothing() -> None:
    player = Player(budget=0)
    for n in (*range(8), 10, 9, 11, 8, 12):
        assert player.get(n) == witness(n, set())
    assert set(player.model.made.values()) == {1}


def test_reversed_playback_makes_each_frame_once() -> None:
    player = Player(budget=0)
    for n in reversed(range(FRAMES)):
        assert player.get(n) == witness(n, set())
    assert set(player.model.made.values()) == {1}


def test_rendered_results_are_forgotten_beyond_the_budget_and_made_again_when_asked_for() -> None:
    player = Player(budget=0)
    for n in range(6):
        player.get(n)
    assert player.get(2) == witness(2, set())
    assert player.model.made[2] == 2
    assert player.session.counters()["replays"] == 1


def test_results_within_the_budget_are_rendered_again_without_the_network() -> None:
    player = Player()
    for n in (*range(6), 2):
        player.get(n)
    assert set(player.model.made.values()) == {1}


def test_a_cut_ends_the_context_on_both_sides() -> None:
    player = Player(cuts=(12,))
    assert player.get(9) == [9, 0, 11]
    assert player.get(11) == [11, 7, 11]
    assert player.session.counters()["restarts"] == 0
    assert player.get(12) == [12, 12, 22]
    assert player.session.counters()["restarts"] == 1


def test_cuts_count_for_nothing_when_scene_changes_are_ignored() -> None:
    model = WitnessModel()
    session = ChunkedSession(model, frames=30, length=10, overlap=0, budget=0, scene_change=False)
    sources = {i: Source(i, cut=True) for i in range(10)}
    assert session.advance(4, {4}, sources) == []
    output: list[int] = []
    session.render(4, output)
    assert output == [4, 0, 9]


def test_cuts_that_are_found_end_the_context_as_marked_ones_do() -> None:
    class KnownCuts:
        def look(self, frame: int) -> int:
            return frame

        def is_cut(self, before: int, after: int) -> bool:
            assert after == before + 1
            return after in {12, 30, 31, 67}

    rng = random.Random(0)
    player = Player(cuts=(67, 90), broken=(40,))
    player.session = ChunkedSession(
        player.model, frames=FRAMES, length=LENGTH, overlap=OVERLAP, budget=0, detector=KnownCuts()
    )
    for n in (rng.randrange(FRAMES) for _ in range(200)):
        if n != 40:
            # A gap ends a stretch on both sides, as cuts before and behind it would.
            assert player.get(n) == witness(n, {12, 30, 31, 67, 90, 40, 41})


def test_a_frame_that_the_clip_cannot_give_ends_the_context_on_both_sides() -> None:
    player = Player(broken=(15,))
    assert player.get(12) == [12, 7, 14]
    assert player.get(16) == [16, 16, 22]
    assert player.get(12) == [12, 7, 14]
    assert player.get(9) == [9, 0, 12]


def test_what_was_made_while_a_frame_could_not_be_had_is_forgotten_with_it() -> None:
    player = Player(broken=(15,))
    for n in (12, 16):
        player.get(n)
    player.broken.clear()
    player.session.forget()
    assert player.model.forgotten == 1
    assert [player.get(n) for n in (12, 15, 16)] == [witness(n, set()) for n in (12, 15, 16)]


def test_a_chunk_that_has_seen_a_previews_frame_is_approximate() -> None:
    player = Player()
    player.previewed = {21}
    marks = {}
    for n in range(40):
        player.get(n)
        marks[n] = player.approximate
    assert [n for n, approximate in marks.items() if approximate] == list(range(10, 30))


def test_a_failure_of_the_model_leaves_the_session_usable() -> None:
    player = Player()
    player.model.fail_at = 4
    with pytest.raises(RuntimeError, match="the model stumbled"):
        player.get(5)
    assert player.get(5) == witness(5, set())


def test_no_more_than_two_chunks_are_kept() -> None:
    player = Player(budget=10**9)
    for n in range(0, FRAMES, 4):
        player.get(n)
        assert len(player.session._chunks) <= 2
        assert len(player.session._rendered) <= 2 * LENGTH
        assert len(player.session._seen) <= LENGTH + 2 * OVERLAP


def test_a_session_short_of_memory_forgets_what_was_rendered_but_goes_on() -> None:
    player = Player(budget=10**9)
    expected = [player.get(n) for n in range(12)]
    player.session.shrink()
    assert len(player.session._rendered) == 1
    assert [player.get(n) for n in range(12)] == expected


def test_a_session_short_of_memory_lets_go_of_everything_but_the_frame_that_is_asked_for() -> None:
    player = Player(budget=10**9)
    expected = [player.get(n) for n in range(25)]
    player = Player(budget=10**9)
    player.get(9)
    player.get(19)
    player.session.shrink()
    assert [list(chunk.results) for chunk in player.session._chunks.values()] == [[19]]
    # What is passed by from now on is kept for those alone who wait for it.
    player.session.advance(22, {20, 22}, {})
    while missing := player.session.advance(22, {20, 22}, {i: player._source(i) for i in range(FRAMES)}):
        assert not missing
    assert sorted(n for chunk in player.session._chunks.values() for n in chunk.results) == [19, 20, 22]
    assert [player.get(n) for n in range(25)] == expected


def test_chunks_of_any_length_read_no_more_than_their_scene() -> None:
    player = Player(frames=100_000, length=100_000, cuts=(500, 520, 99_000))
    assert player.get(510) == [510, 500, 519]
    assert min(player.fetched) >= 510 - 64
    assert max(player.fetched) < 520 + 8
    assert player.get(521)[:2] == [521, 520]
    assert player.get(499) == [499, 0, 499]


def test_a_scene_that_is_found_is_looked_at_once() -> None:
    class Detector:
        looked = 0

        def look(self, frame: int) -> int:
            return frame

        def is_cut(self, before: int, after: int) -> bool:
            self.looked += 1
            return after in (40, 60)

    detector, model = Detector(), WitnessModel()
    session: ChunkedSession[int, int, tuple[int, int, int], list[int]] = ChunkedSession(
        model, frames=FRAMES, length=FRAMES, overlap=0, budget=0, detector=detector
    )
    wanted: Sequence[int] = [50]
    while wanted := session.advance(50, {50}, {i: Source(i, False, False) for i in {50, *wanted}}):
        pass
    output: list[int] = []
    session.render(50, output)
    assert output == [50, 40, 59]
    assert detector.looked <= 21
