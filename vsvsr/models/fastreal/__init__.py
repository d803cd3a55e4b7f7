"""FastRealVSR."""

from vsvsr.models.fastreal.config import COMPACT, PLAIN, FastRealConfig
from vsvsr.models.fastreal.files import load_fastreal, save_fastreal
from vsvsr.models.fastreal.network import HEAD, FastRealVSR

__all__ = ["COMPACT", "HEAD", "PLAIN", "FastRealConfig", "FastRealVSR", "load_fastreal", "save_fastreal"]
