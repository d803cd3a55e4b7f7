"""SkipVSR checkpoints: one of BasicVSR, and the estimators that belong to it."""

from functools import partial
from pathlib import Path

import torch

from vsvsr.errors import UserError
from vsvsr.models.basicvsr.checkpoints import in_basicsr_layout, sizes
from vsvsr.models.common.loading import Loaded, build
from vsvsr.models.skipvsr.network import Mode, SkipVSR
from vsvsr.weights import read_tensors


def load(
    checkpoint: Path, estimators: Path | None = None, *, threshold: float = 0.0, mode: Mode = "frame", hold: bool = True
) -> Loaded[SkipVSR]:
    """The network of a BasicVSR checkpoint with estimators.

    Args:
        checkpoint: in BasicSR's or OpenMMLab's layout, or a SkipVSR state dict that holds its estimators.
        estimators: needed for thresholds above 0, unless the checkpoint holds them.
        threshold: see `SkipVSR`.
        mode: see `SkipVSR`.
        hold: see `SkipVSR`.

    Raises:
        UserError: a file cannot be read or is of another network, or estimators are needed and missing.
    """
    tensors = in_basicsr_layout(read_tensors(checkpoint)[0])
    if estimators is not None:
        tensors |= read_tensors(estimators)[0]
    channels, blocks = sizes(tensors)
    unfitted = {
        "estimator_backward.weight": torch.zeros(1, channels),
        "estimator_backward.bias": torch.zeros(1),
        "estimator_forward.weight": torch.zeros(1, channels),
        "estimator_forward.bias": torch.zeros(1),
        "kappa": torch.zeros(()),
        "quantiles": torch.linspace(0, 1, 101),
    }
    if threshold > 0 and not unfitted.keys() <= tensors.keys():
        raise UserError(f"weights file {checkpoint} has no confidence estimators; without them only threshold=0 works")
    make = partial(SkipVSR, channels, blocks, threshold=threshold, mode=mode, hold=hold)
    network = build(make, unfitted | tensors, checkpoint, "BasicVSR")
    return Loaded(network.to(memory_format=torch.channels_last), network.scale)
