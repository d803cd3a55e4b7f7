"""UltraVSR: one diffusion step with temporal shift, over clips of any length in bounded memory."""

from vsvsr.models.ultra.checkpoints import load, save
from vsvsr.models.ultra.colour import ColourFix, fix_colour
from vsvsr.models.ultra.network import FULL, TINY, UltraConfig, UltraVSR, build
from vsvsr.models.ultra.rts import RTSForm, RTSModule
from vsvsr.models.ultra.stream import REACH, Restored, Upscaler

__all__ = [
    "FULL",
    "REACH",
    "TINY",
    "ColourFix",
    "RTSForm",
    "RTSModule",
    "Restored",
    "UltraConfig",
    "UltraVSR",
    "Upscaler",
    "build",
    "fix_colour",
    "load",
    "save",
]
