"""BasicVSR and its published checkpoints."""

from vsvsr.models.basicvsr.checkpoints import load
from vsvsr.models.basicvsr.network import BasicVSR

__all__ = ["BasicVSR", "load"]
