"""A few rounds of the random attack, from another seed each time; ``python -m tests.attack`` goes on for hours."""

import secrets

import pytest

from tests.attack.rounds import PARTS, Attack
from tests.attack.tally import Tally

# Hostile files have rounds of their own in test_hostile_files.py.
BOUNDED = sorted(PARTS.keys() - {"files"})


@pytest.mark.parametrize("part", BOUNDED)
def test_a_random_attack_finds_nothing(part: str) -> None:
    seed, tally = str(secrets.randbelow(10**6)), Tally()
    with Attack(seed, tally) as attack:
        assert attack.round(part, 0), f"python -m tests.attack --seed {seed} --part {part} --first 0 --rounds 1"
    assert tally.counts[f"rounds of {part}"] == 1
