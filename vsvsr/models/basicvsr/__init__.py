"""BasicVSR and its published checkpoints."""

from vsvsr.models.basicvsr.checkpoints import from_openmmlab, load
from vsvsr.models.basicvsr.network import BasicVSR

__all__ = ["BasicVSR", "from_openmmlab", "load"]
