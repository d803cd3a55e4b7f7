"""Every argument of every filter: what may be given works, anything else is one line that names the argument."""

import os
import random
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
import vapoursynth as vs

from tests.cases import CASES, Make, WeightsOf, maker
from vsvsr.errors import UserError
from vsvsr.filters.apply import apply
from vsvsr.filters.arguments import LARGEST_INTEGER, Argument
from vsvsr.filters.registry import FILTERS

HUGE = (LARGEST_INTEGER + 1, 2**63 - 1, -(2**63))
ODD_TEXTS = ("a\0b", b"\xff\xfe", "x" * 10_000, "no\nsuch", "a/\0", "\0")
ARGUMENTS = [(name, argument) for name in sorted(FILTERS) for argument in FILTERS[name].settings.arguments()]


@pytest.fixture
def clip(core: vs.Core) -> vs.VideoNode:
    return core.std.BlankClip(format=vs.RGBS, width=48, height=32, length=3)


def wrong_values(argument: Argument) -> Sequence[object]:
    """Values that VapourSynth passes on, and the filter must refuse."""
    if argument.kind is tuple:
        sides = len(argument.each)
        return ([], [64] * (sides - 1), [64] * (sides + 1), [-1] * sides, [31] * sides, *([64, huge] for huge in HUGE))
    if argument.kind is bool:
        return (2, -1, *HUGE, [], [0, 1])
    if argument.kind is int:
        below = () if argument.at_least is None else (argument.at_least - 1,)
        return (*below, *HUGE, [], [1, 2])
    if argument.kind is float:
        return (float("nan"), float("inf"), float("-inf"), -0.1, 1.1, 1e308, [], [0.5, 0.5])
    if argument.path:
        return (*ODD_TEXTS, "/nowhere/at/all", "/" if argument.path == "file" else __file__, [], ["a", "b"])
    chosen = argument.choices or argument.name == "model"
    return (*ODD_TEXTS, "nonsense", [], ["a", "b"]) if chosen else ("a\0b", b"\xff\xfe", [], ["a", "b"])


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(vs.Error) as caught:
        call()
    return str(caught.value)


def says(message: str, name: str, argument: str) -> bool:
    """Whether a message is one short line that names filter and argument, without the name of a Python exception."""
    raw = re.search(r"\b\w+(Error|Exception)\b", message)
    line = "\n" not in message and len(message) < 600
    return message.startswith(f"{name}: ") and re.search(rf"\b{argument}\b", message) is not None and line and not raw


@pytest.mark.parametrize(
    ("name", "argument"), ARGUMENTS, ids=[f"{name} {argument.name}" for name, argument in ARGUMENTS]
)
def test_every_wrong_value_is_refused_in_one_line_that_names_the_argument(
    name: str, argument: Argument, clip: vs.VideoNode, weights_of: WeightsOf
) -> None:
    weights = {} if argument.name == "model" else {"model_path": str(weights_of(name))}
    for value in wrong_values(argument):
        given = {**weights, argument.name: value}
        message = refusal(lambda given=given: getattr(vs.core.vsvsr, name)(clip, **given))
        assert says(message, name, argument.name), (value, message)


@pytest.fixture(params=sorted(FILTERS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(name: str, weights_of: WeightsOf) -> Make:
    return maker(name, weights_of(name))


def test_arrays_of_several_numbers_are_refused_in_one_line(clip: vs.VideoNode) -> None:
    for name, argument, value in (
        ("FastReal", "segment", np.array([3, 4])),
        ("FastReal", "segment", torch.tensor(1.5)),
        ("Skip", "threshold", np.array([0.5, 0.5])),
        ("Skip", "threshold", torch.tensor([0.5, 0.5])),
        ("Skip", "threshold", Decimal("sNaN")),
    ):
        assert says(refusal(lambda given=(name, argument, value): _apply(clip, *given)), name, argument)


def _apply(clip: vs.VideoNode, name: str, argument: str, value: object) -> vs.VideoNode:
    return apply(name, clip, {argument: value})


def test_the_largest_numbers_that_are_allowed_work(name: str, make: Make, clip: vs.VideoNode) -> None:
    largest: dict[str, object] = {"tile": [LARGEST_INTEGER] * 2}
    for argument in FILTERS[name].settings.arguments():
        if argument.kind is int and argument.name != "device_index":
            largest[argument.name] = argument.at_most or LARGEST_INTEGER
    with make(clip, **largest).get_frame(1) as frame:
        assert (frame.width, frame.height) == (48 * CASES[name].scale, 32 * CASES[name].scale)


STRANGE = (
    None,
    [],
    {},
    object(),
    b"x",
    "",
    "x",
    "\ud800",
    "/",
    Path(__file__),
    10**30,
    10**5000,
    -1,
    0,
    1,
    32,
    0.5,
    1e400,
)
STRANGE = (*STRANGE, float("nan"), True, [1, 2], [64, 64], (0, 0), [None], ["a", 1], [[1], [2]])


def test_random_arguments_are_taken_or_refused_by_name(name: str) -> None:
    settings = FILTERS[name].settings
    seed = random.randrange(1 << 32)
    print("seed", seed)
    generator = random.Random(seed)
    taken = 0
    for _ in range(2000):
        arguments = generator.sample(settings.arguments(), generator.randint(1, 2))
        given = {argument.name: generator.choice(STRANGE) for argument in arguments}
        try:
            made = settings.parse(given)
        except UserError as error:
            message = f"{name}: {error}"
            assert any(says(message, name, argument) for argument in given), (given, message)
        else:
            taken += 1
            for argument in arguments:
                value = getattr(made, argument.name)
                assert value is None or isinstance(value, argument.kind), (given, value)
    assert 50 < taken < 1950


def test_a_path_is_read_to_its_end_not_to_a_nul_character(clip: vs.VideoNode, tiny_fastreal: Path) -> None:
    message = refusal(lambda: clip.vsvsr.FastReal(model_path=f"{tiny_fastreal}\0.other"))
    assert message.endswith("x00.other' is not possible; allowed: an existing file, without NUL characters")


def test_a_name_that_is_not_utf_8_is_shown_escaped(clip: vs.VideoNode, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/weights\xff.safetensors"
    Path(os.fsdecode(path)).write_bytes(b"no tensors here")
    message = refusal(lambda: clip.vsvsr.FastReal(model_path=path))
    assert f"{tmp_path}/weights\\udcff.safetensors is " in message
