"""Real-ESRGAN's published per-frame networks: teachers and peers of FastReal, not filters."""

from vsvsr.models.realesrgan.checkpoints import load_ncnn, load_published
from vsvsr.models.realesrgan.network import SRVGG, PerFrameNetwork, RRDBNet, create

__all__ = ["SRVGG", "PerFrameNetwork", "RRDBNet", "create", "load_ncnn", "load_published"]
