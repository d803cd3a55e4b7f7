"""SkipVSR: BasicVSR with adaptive block skipping."""

from vsvsr.models.skipvsr.checkpoints import load
from vsvsr.models.skipvsr.network import SkipVSR

__all__ = ["SkipVSR", "load"]
