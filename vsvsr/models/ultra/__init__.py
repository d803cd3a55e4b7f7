"""UltraVSR: one diffusion step with temporal shift, over clips of any length in bounded memory."""

from vsvsr.models.ultra.rts import RTSForm, RTSModule

__all__ = ["RTSForm", "RTSModule"]
