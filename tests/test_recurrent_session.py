"""The session of recurrent models, over a model whose output reveals its whole history."""

import random
from collections import Counter

import pytest

from vsvsr.streaming import RecurrentSession, Segments, Source
from vsvsr.streaming.recurrent import PREVIEW_LEAD
from vsvsr.streaming.states import MAX_STATES


class HistoryModel:
    """Its state is the tuple of all frames seen since the cold start, and so is its picture."""

    def __init__(self) -> None:
        self.seen: Counter[int] = Counter()
        self.fail_at: int | None = None

    def step(self, state: tuple[int, ...] | None, frame: int) -> tuple[int, ...]:
        if frame == self.fail_at:
            self.fail_at = None
            raise RuntimeError("the model stumbled")
        self.seen[frame] += 1
        return (*(state or ()), frame)

    def render(self, state: tuple[int, ...], output: list[int]) -> None:
        output[:] = state

    def size(self, state: tuple[int, ...]) -> int:
        return 1000


class KnownCuts:
    """Finds cuts that it knows, and is only ever shown neighbours."""

    def __init__(self, cuts: set[int]) -> None:
        self.cuts = cuts
        self.compared: Counter[int] = Counter()

    def look(self, frame: int) -> int:
        return frame

    def is_cut(self, before: int, after: int) -> bool:
        assert after == before + 1
        self.compared[after] += 1
        return after in self.cuts


def history(n: int, segments: Segments, restarts: set[int]) -> list[int]:
    """What frame ``n`` must have seen, by the definition: back to the last restart or the warm-up's start."""
    first = max([segments.origin(n), *(r for r in restarts if r <= n)])
    return list(range(first, n + 1))


class Player:
    """Plays requests as the native plugin does, with several in flight."""

    def __init__(
        self,
        session: RecurrentSession[int, tuple[int, ...], list[int]],
        *,
        cuts: set[int] = frozenset(),  # type: ignore[assignment]
        broken: set[int] = frozenset(),  # type: ignore[assignment]
    ) -> None:
        self.session = session
        self.cuts, self.broken = cuts, set(broken)
        self.previewed: set[int] = set()
        self.fetched: Counter[int] = Counter()
        self.approximate = False

    def get(self, n: int, wanted: set[int] | None = None) -> list[int]:
        wanted = (wanted or set()) | {n}
        sources = {n: self._source(n)}
        while missing := self.session.advance(n, wanted, sources):
            assert len(missing) <= 8
            self.fetched.update(set(missing) - {n})
            sources = {i: self._source(i) for i in {*missing, n}}
        output: list[int] = []
        self.approximate = self.session.render(n, output)
        return output

    def _source(self, n: int) -> Source[int]:
        return Source(None if n in self.broken else n, n in self.cuts, n in self.previewed)


def player(
    *,
    length: int = 40,
    warmup: int = 6,
    budget: int = 100_000,
    preview: bool = False,
    cuts: set[int] = frozenset(),  # type: ignore[assignment]
    broken: set[int] = frozenset(),  # type: ignore[assignment]
    detector: KnownCuts | None = None,
) -> tuple[Player, HistoryModel, Segments]:
    model, segments = HistoryModel(), Segments(length=length, warmup=warmup)
    return (
        Player(
            RecurrentSession(model, segments, budget=budget, preview=preview, detector=detector),
            cuts=cuts,
            broken=broken,
        ),
        model,
        segments,
    )


def shuffled_within(frames: list[int], reach: int, seed: int) -> list[int]:
    """The order in which frames arrive when up to ``reach`` are in flight."""
    rng = random.Random(seed)
    arrival = sorted((i + rng.uniform(0, reach), n) for i, n in enumerate(frames))
    return [n for _, n in arrival]


def test_linear_playback_steps_each_frame_once_plus_the_warm_up() -> None:
    play, model, segments = player()
    for n in range(200):
        assert play.get(n) == history(n, segments, set())
    counters = play.session.counters()
    assert counters["steps"] == 200
    assert counters["warmup_steps"] == 4 * 6
    assert counters["seeks"] == counters["replays"] == 0
    assert max(model.seen.values()) == 2


@pytest.mark.parametrize("reach", [2, 5, 8])
@pytest.mark.parametrize("seed", range(5))
def test_late_requests_in_linear_playback_cost_no_extra_step(reach: int, seed: int) -> None:
    cuts = {57, 58, 119}
    play, model, segments = player(cuts=cuts)
    order = shuffled_within(list(range(200)), reach, seed)
    for position, n in enumerate(order):
        in_flight = {m for m in order[position:] if m <= max(order[: position + 1])}
        assert play.get(n, in_flight) == history(n, segments, cuts)
    for n, times in model.seen.items():
        assert times == 1 or (times == 2 and segments.start(n) != segments.start(n + segments.warmup))
    assert play.session.counters()["seeks"] == 0


@pytest.mark.parametrize("length", [0, 1, 7, 40])
@pytest.mark.parametrize("warmup", [0, 1, 6])
@pytest.mark.parametrize("budget", [0, 3_000, 20_000])
def test_any_order_of_requests_gives_the_history_of_linear_playback(length: int, warmup: int, budget: int) -> None:
    rng = random.Random(length * 100 + warmup * 10 + budget)
    cuts = set(rng.sample(range(150), 4))
    play, _, segments = player(length=length, warmup=min(warmup, length), budget=budget, cuts=cuts)
    position = 0
    for _ in range(400):
        position = rng.choice([position + 1, position - 1, position + rng.randint(-9, 9), rng.randrange(150)]) % 150
        wanted = {rng.randrange(150) for _ in range(rng.randint(0, 8))}
        assert play.get(position, wanted) == history(position, segments, cuts)


def test_a_jump_forward_in_a_segment_goes_on_from_the_last_state() -> None:
    play, model, _ = player()
    play.get(3)
    play.get(30)
    assert set(model.seen.values()) == {1}
    counters = play.session.counters()
    assert (counters["seeks"], counters["checkpoint_hits"], counters["replays"]) == (1, 1, 26)


def test_a_seek_back_starts_from_a_checkpoint() -> None:
    play, _, segments = player(length=0)
    for n in range(100):
        play.get(n)
    before = play.session.counters()["steps"]
    assert play.get(61) == history(61, segments, set())
    counters = play.session.counters()
    assert counters["seeks"] == counters["checkpoint_hits"] == 1
    assert counters["replays"] == 61 - 56 - 1
    assert counters["steps"] - before == 61 - 56


def test_reversed_playback_steps_each_frame_about_once_more() -> None:
    play, _, segments = player(length=0)
    for n in reversed(range(120)):
        assert play.get(n) == history(n, segments, set())
    assert play.session.counters()["steps"] <= 120 + 120


def test_two_interleaved_readers_step_each_frame_once() -> None:
    play, _, segments = player(length=0)
    play.get(99)
    before = play.session.counters()["steps"]
    for n in range(100, 140):
        assert play.get(n) == history(n, segments, set())
        assert play.get(n - 100) == history(n - 100, segments, set())
    assert play.session.counters()["steps"] - before <= 80


def test_no_restart_happens_at_a_cut_when_scene_changes_are_ignored() -> None:
    session = RecurrentSession(HistoryModel(), Segments(length=0, warmup=0), budget=0, scene_change=False)
    assert Player(session, cuts={5}).get(8) == list(range(9))


def test_the_warm_up_never_crosses_a_cut() -> None:
    play, _, _ = player(cuts={38})
    assert play.get(45) == list(range(38, 46))


def test_a_known_cut_saves_the_way_up_to_it() -> None:
    play, model, _ = player(length=0, cuts={80}, budget=0)
    play.get(90)
    play.get(5)
    model.seen.clear()
    assert play.get(85) == list(range(80, 86))
    assert sum(model.seen.values()) == 6


@pytest.mark.parametrize("budget", [0, 5000, 100_000])
def test_cuts_that_are_found_restart_the_recurrence_in_any_order_of_requests(budget: int) -> None:
    found, marked, broken = {33, 34, 57, 80, 120}, {70, 120}, {50, 56}
    play, _, segments = player(budget=budget, cuts=marked, broken=broken, detector=KnownCuts(found))
    restarts = found | marked | {n + 1 for n in broken}
    rng = random.Random(budget)
    position = 0
    for _ in range(500):
        step = rng.choice([1, 1, 1, -1, rng.randint(-12, 12), rng.randint(-100, 100)])
        position = (position + step) % 150
        if position not in broken:
            assert play.get(position) == history(position, segments, restarts)


def test_linear_playback_compares_each_frame_once_with_the_one_before() -> None:
    detector = KnownCuts({33})
    play, _, _ = player(length=0, detector=detector)
    for n in range(60):
        play.get(n)
    assert detector.compared == Counter(range(1, 60))


@pytest.mark.parametrize("marked", [False, True])
def test_a_far_seek_looks_backwards_for_the_last_cut_and_rolls_up_nothing_before_it(marked: bool) -> None:
    cuts = {120, 200}
    play, model, segments = player(
        length=0, cuts=cuts if marked else set(), detector=None if marked else KnownCuts(cuts)
    )
    play.get(0)
    assert play.get(210) == history(210, segments, cuts)
    assert sum(model.seen.values()) == 1 + 11
    counters = play.session.counters()
    assert (counters["seeks"], counters["replays"], counters["restarts"]) == (1, 10, 1)


def test_a_far_seek_without_a_cut_rolls_up_the_whole_way() -> None:
    play, model, segments = player(length=0, detector=KnownCuts(set()))
    play.get(0)
    assert play.get(50) == history(50, segments, set())
    assert sum(model.seen.values()) == 51
    assert play.session.counters()["replays"] == 49


def test_the_recurrence_starts_afresh_behind_frames_that_the_clip_cannot_give() -> None:
    play, _, segments = player(broken={20, 23, 24})
    for n in (18, 22, 30, 27, 21, 19, 25, 31):
        assert play.get(n) == history(n, segments, {21, 25})


def test_a_preview_is_exact_again_behind_a_frame_that_the_clip_cannot_give() -> None:
    play, _, segments = player(length=0, preview=True, broken={69})
    assert play.get(72) == history(72, segments, {70})
    assert not play.approximate


def test_frames_in_any_order_between_frames_that_the_clip_cannot_give_are_those_of_linear_playback() -> None:
    play, _, segments = player(broken={17, 19, 38, 39, 40, 77})
    rng = random.Random(0)
    for n in (rng.randrange(120) for _ in range(400)):
        if n not in play.broken:
            assert play.get(n) == history(n, segments, {b + 1 for b in play.broken})


def test_what_was_kept_while_a_frame_could_not_be_had_is_forgotten_with_it() -> None:
    play, _, segments = player(broken={20}, cuts={33})
    for n in (19, *range(21, 36)):
        play.get(n)
    play.broken.clear()
    play.cuts.clear()
    play.session.forget()
    for n in (30, 35, 20, 21):
        assert play.get(n) == history(n, segments, set())


def test_a_state_that_has_seen_a_previews_frame_is_approximate_until_the_recurrence_restarts() -> None:
    play, _, segments = player(cuts={14})
    play.previewed = {9}
    for n in (*range(16), 45, 12, 8):
        assert play.get(n) == history(n, segments, play.cuts)
        assert play.approximate == (9 <= n < 14)
    assert play.session.counters()["steps"] == 16 + 6


def test_a_failure_of_the_model_leaves_the_session_usable() -> None:
    play, model, segments = player()
    play.get(10)
    model.fail_at = 12
    with pytest.raises(RuntimeError, match="the model stumbled"):
        play.get(14)
    assert play.get(14) == history(14, segments, set())
    assert play.get(3) == history(3, segments, set())


def test_a_preview_starts_a_few_frames_before_and_says_so() -> None:
    play, _, segments = player(length=0, preview=True)
    assert play.get(0) == [0]
    assert not play.approximate
    assert play.get(70) == list(range(70 - PREVIEW_LEAD, 71))
    assert play.approximate
    assert play.get(71) == list(range(70 - PREVIEW_LEAD, 72))
    assert play.approximate
    assert play.get(2) == history(2, segments, set())
    assert not play.approximate


def test_a_preview_is_exact_again_behind_a_cut() -> None:
    play, _, segments = player(length=0, preview=True, cuts={69})
    assert play.get(72) == history(72, segments, {69})
    assert not play.approximate


def test_an_approximate_state_never_serves_an_exact_frame() -> None:
    play, _, _ = player(length=0, preview=True)
    play.get(50)
    assert play.approximate
    assert all(checkpoint.approximate for checkpoint in play.session._store)


def test_missing_sources_are_asked_for_in_groups_of_eight() -> None:
    session = RecurrentSession(HistoryModel(), Segments(length=0, warmup=0), budget=0, scene_change=False)
    assert session.advance(20, {20}, {20: Source(20)}) == list(range(8))
    session = RecurrentSession(HistoryModel(), Segments(length=0, warmup=0), budget=0)
    assert session.advance(20, {20}, {20: Source(20)}) == list(range(12, 20))


def test_kept_states_stay_within_the_budget_and_in_number() -> None:
    play, _, _ = player(length=240, budget=12_000)
    for n in range(1000):
        play.get(n)
    assert len(list(play.session._store)) <= 12
    play, _, _ = player(length=0, budget=10**9)
    for n in range(3000):
        play.get(n)
    assert len(list(play.session._store)) <= MAX_STATES


def test_old_checkpoints_are_thinned_out_not_cut_off() -> None:
    play, _, _ = player(length=0, budget=20_000)
    for n in range(400):
        play.get(n)
    kept = sorted(checkpoint.index for checkpoint in play.session._store)
    assert len(kept) == 20
    assert kept[0] < 200
    assert kept[-1] == 399


def test_without_budget_the_newest_states_stay() -> None:
    play, _, segments = player(budget=0)
    for n in range(60):
        assert play.get(n) == history(n, segments, set())
    assert play.session.counters()["steps"] == 60
    assert sorted(checkpoint.index for checkpoint in play.session._store) == [39, 58, 59]


def test_a_session_short_of_memory_forgets_but_goes_on() -> None:
    play, model, segments = player(length=240, budget=10**9)
    for n in range(60):
        play.get(n)
    play.session.shrink()
    assert len(list(play.session._store)) <= 3
    assert play.get(60) == history(60, segments, set())
    assert model.seen[60] == 1
    assert play.get(8) == history(8, segments, set())


def test_a_picture_that_fails_can_be_rendered_again() -> None:
    play, model, segments = player()
    play.get(0)
    output: list[int] = []
    assert not play.session.advance(1, {1}, {1: Source(1)})
    render, model.render = model.render, fail  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        play.session.render(1, output)
    model.render = render  # type: ignore[method-assign]
    play.session.shrink()
    play.session.render(1, output)
    assert output == history(1, segments, set())


def fail(state: tuple[int, ...], output: list[int]) -> None:
    raise MemoryError
