"""Which weights file a filter reads."""

from pathlib import Path

from vsvsr import weights
from vsvsr.errors import check
from vsvsr.filters.settings import SharedSettings


def find_weights(filter_name: str, settings: SharedSettings, default: str) -> Path:
    """The verified weights file that ``model`` or ``model_path`` stands for.

    Raises:
        UserError: there is no such name, or the weights are not installed.
    """
    if settings.model_path:
        return Path(settings.model_path)
    names = [row.name for row in weights.MANIFEST if row.model == filter_name and not row.part]
    name = settings.model or default
    check(name in names, "model", name, " or ".join(names) or "none; give model_path")
    return weights.verify(name)
