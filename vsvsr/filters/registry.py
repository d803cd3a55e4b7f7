"""All filters, and what each of them is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vsvsr.filters import fastreal
from vsvsr.filters.clip import Clip
from vsvsr.filters.settings import Arguments, SharedSettings

if TYPE_CHECKING:
    from vsvsr.filters.opened import Opened


@dataclass(frozen=True)
class Filter[Settings: SharedSettings]:
    """One filter.

    Attributes:
        name: as in ``core.vsvsr.<name>``.
        settings: its arguments.
        create: checks the clip, loads the weights and makes the session; imports torch.
    """

    name: str
    settings: type[Settings]
    create: "Callable[[Settings, Clip], Opened]"

    def open(self, arguments: Arguments, clip: Clip) -> "Opened":
        """A session for ``clip``. Raises ``UserError`` for anything that cannot work."""
        settings = self.settings.parse(arguments)
        clip.require_float_rgb()
        return self.create(settings, clip)


FILTERS = {
    definition.name: definition for definition in (Filter("FastReal", fastreal.FastRealSettings, fastreal.create),)
}
