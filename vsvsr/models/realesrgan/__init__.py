"""Real-ESRGAN's published per-frame networks: teachers and peers of FastReal, not filters."""

from vsvsr.models.realesrgan.checkpoints import holds_x4plus, load_ncnn, load_published, x4plus_tensors
from vsvsr.models.realesrgan.network import SRVGG, PerFrameNetwork, RRDBNet, create

__all__ = [
    "SRVGG",
    "PerFrameNetwork",
    "RRDBNet",
    "create",
    "holds_x4plus",
    "load_ncnn",
    "load_published",
    "x4plus_tensors",
]
