"""The weight store: a manifest of published weights, verified files, and the command that installs them.

Filters call ``find`` and ``read_tensors`` and never use the network; only ``install`` does.
"""

from vsvsr.weights.installation import install, keep
from vsvsr.weights.manifest import MANIFEST, Weights
from vsvsr.weights.read import read_checkpoint, read_metadata, read_tensors, state_dict, unwrapped
from vsvsr.weights.store import find, folder, location, present, sha256, verify

__all__ = [
    "MANIFEST",
    "Weights",
    "find",
    "folder",
    "install",
    "keep",
    "location",
    "present",
    "read_checkpoint",
    "read_metadata",
    "read_tensors",
    "sha256",
    "state_dict",
    "unwrapped",
    "verify",
]
