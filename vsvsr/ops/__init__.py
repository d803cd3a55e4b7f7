"""Hot operations. Each has a plain PyTorch form that defines the result."""

from vsvsr.ops.flow_warp import flow_warp

__all__ = ["flow_warp"]
