"""UltraVSR: one diffusion step with temporal shift, over clips of any length in bounded memory."""

from vsvsr.models.ultra.colour import ColourFix, fix_colour
from vsvsr.models.ultra.network import FULL, TINY, UltraConfig, UltraVSR, build
from vsvsr.models.ultra.rts import RTSForm, RTSModule

__all__ = ["FULL", "TINY", "ColourFix", "RTSForm", "RTSModule", "UltraConfig", "UltraVSR", "build", "fix_colour"]
