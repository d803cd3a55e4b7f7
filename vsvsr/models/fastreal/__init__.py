"""FastRealVSR."""

from vsvsr.models.fastreal.checkpoints import load, save
from vsvsr.models.fastreal.config import COMPACT, PLAIN, FastRealConfig, Restarts
from vsvsr.models.fastreal.network import HEAD, FastRealVSR

__all__ = ["COMPACT", "HEAD", "PLAIN", "FastRealConfig", "FastRealVSR", "Restarts", "load", "save"]
