"""Loading SkipVSR: a BasicVSR checkpoint, and the estimators that belong to it."""

from pathlib import Path

from vsvsr.errors import UserError
from vsvsr.models.basicvsr.checkpoints import load_tensors
from vsvsr.models.skipvsr.network import SkipVSR
from vsvsr.weights import read_tensors

ESTIMATORS = (
    *(f"estimator_{direction}.{part}" for direction in ("backward", "forward") for part in ("weight", "bias")),
    "kappa",
    "quantiles",
)


def load(network: SkipVSR, checkpoint: Path, estimators: Path | None = None) -> None:
    """Read a BasicVSR checkpoint and a file of estimators into ``network``.

    Args:
        network: filled in place.
        checkpoint: in BasicSR's or OpenMMLab's layout, or a SkipVSR state dict that holds its estimators.
        estimators: needed for thresholds above 0, unless the checkpoint holds them.

    Raises:
        UserError: a file is of another network, or estimators are needed and missing.
    """
    tensors, _ = read_tensors(checkpoint)
    if estimators is not None:
        tensors = {**tensors, **read_tensors(estimators)[0]}
    missing = [name for name in ESTIMATORS if name not in tensors]
    if missing and network.threshold > 0:
        raise UserError(f"weights file {checkpoint} has no confidence estimators; without them only threshold=0 works")
    own = network.state_dict()
    load_tensors(network, {**{name: own[name] for name in missing}, **tensors}, checkpoint)
