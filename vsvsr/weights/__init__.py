"""The weight store: a manifest of published weights, verified files, and the command that installs them.

Filters call ``find`` and ``read_tensors`` and never use the network; only ``install`` does.
"""

from vsvsr.weights.installation import install
from vsvsr.weights.manifest import MANIFEST, Weights
from vsvsr.weights.read import read_checkpoint, read_tensors, state_dict
from vsvsr.weights.store import find, folder, location, verify

__all__ = [
    "MANIFEST",
    "Weights",
    "find",
    "folder",
    "install",
    "location",
    "read_checkpoint",
    "read_tensors",
    "state_dict",
    "verify",
]
