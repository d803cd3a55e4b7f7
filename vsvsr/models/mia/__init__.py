"""MIA-VSR: masked inter and intra-frame attention."""

from vsvsr.models.mia.checkpoints import load
from vsvsr.models.mia.gates import Gate, KeepRatios, MaskSite, refreshing_gate, threshold_gate
from vsvsr.models.mia.network import MIAVSR

__all__ = ["MIAVSR", "Gate", "KeepRatios", "MaskSite", "load", "refreshing_gate", "threshold_gate"]
