"""Which weights file a filter reads."""

from pathlib import Path

from vsvsr import weights
from vsvsr.errors import check
from vsvsr.filters.settings import SharedSettings


def published(filter_name: str) -> tuple[str, ...]:
    """The names that ``model`` may have."""
    return tuple(row.name for row in weights.MANIFEST if row.model == filter_name and not row.part)


def find_weights(filter_name: str, settings: SharedSettings, default: str, *, download: bool = False) -> Path:
    """The verified weights file that ``model`` or ``model_path`` stands for.

    Args:
        filter_name: whose weights.
        settings: the filter's.
        default: what ``model`` is when nothing is given.
        download: install them first, where they are not.

    Raises:
        UserError: there is no such name, or the weights are not installed, or cannot be.
    """
    if settings.model_path:
        return Path(settings.model_path)
    name = settings.model or default
    names = published(filter_name)
    check(name in names, "model", name, " or ".join(names) or "none; give model_path")
    return weights.install(name) if download else weights.verify(name)
