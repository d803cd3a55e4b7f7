"""The table of what the papers describe names files and tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "papers.md").read_text()


def test_every_named_test_exists() -> None:
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", TEXT)
    assert len(named) > 30
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), (file, name)


def test_every_named_file_exists() -> None:
    named = re.findall(r"`((?:models|training|filters|ops|evaluation|weights)/\S+\.py)`", TEXT)
    assert len(named) > 30
    for file in named:
        assert (ROOT / "vsvsr" / file).is_file(), file
