"""All filters, and what each of them is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vsvsr.filters import fastreal, mia, skip, ultra
from vsvsr.filters.clip import Clip
from vsvsr.filters.settings import SharedSettings

if TYPE_CHECKING:
    from vsvsr.filters.session import FilterSession


@dataclass(frozen=True)
class Filter[Settings: SharedSettings]:
    """One filter.

    Attributes:
        settings: its arguments.
        create: checks the clip, loads the weights and makes the session; imports torch.
        packages: what it needs that the others do not; the extra of its name, in lower case, installs them.
    """

    settings: type[Settings]
    create: "Callable[[Settings, Clip], FilterSession]"
    packages: tuple[str, ...] = ()

    def open(self, arguments: Mapping[str, object], clip: Clip) -> "FilterSession":
        """A session for ``clip``. Raises ``UserError`` for anything that cannot work."""
        settings = self.settings.parse(arguments)
        clip.require_float_rgb()
        return self.create(settings, clip)


FILTERS: dict[str, Filter[Any]] = {
    "FastReal": Filter(fastreal.FastRealSettings, fastreal.create),
    "Skip": Filter(skip.SkipSettings, skip.create),
    "MIA": Filter(mia.MIASettings, mia.create),
    "Ultra": Filter(ultra.UltraSettings, ultra.create, packages=("diffusers", "transformers")),
}
