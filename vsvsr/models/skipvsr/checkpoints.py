"""SkipVSR checkpoints: one of BasicVSR, and the estimators that belong to it."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from vsvsr.errors import UserError, shown
from vsvsr.models.basicvsr.checkpoints import in_basicsr_layout, sizes
from vsvsr.models.common.loading import Loaded, build
from vsvsr.models.skipvsr.network import Mode, SkipVSR
from vsvsr.weights import read_tensors, verify


def load(
    checkpoint: Path,
    estimators: Path | None = None,
    *,
    threshold: float = 0.0,
    mode: Mode = "frame",
    hold: bool | None = None,
) -> Loaded[SkipVSR]:
    """The network of a BasicVSR checkpoint with estimators.

    What a skipped block does, and how many blocks share a decision, is in the metadata of the file with the
    estimators, as ``skipped`` (``hold`` or ``identity``) and ``stride``; a file without them means hold, and 1.
    A file with ``base`` in its metadata, a name of the manifest, takes from those weights what it lacks itself.

    Args:
        checkpoint: in BasicSR's or OpenMMLab's layout, or a SkipVSR state dict that holds its estimators.
        estimators: needed for thresholds above 0, unless the checkpoint holds them.
        threshold: see `SkipVSR`.
        mode: see `SkipVSR`.
        hold: overrules the metadata.

    Raises:
        UserError: a file cannot be read or is of another network, or estimators are needed and missing.
    """
    tensors, metadata = read_tensors(checkpoint)
    if "base" in metadata:
        tensors = read_tensors(verify(metadata["base"]))[0] | tensors
    tensors = in_basicsr_layout(tensors)
    if estimators is not None:
        own, metadata = read_tensors(estimators)
        tensors |= own
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
    holds, stride = _skipping(metadata, estimators or checkpoint, blocks)
    hold = holds if hold is None else hold
    make = partial(SkipVSR, channels, blocks, threshold=threshold, mode=mode, hold=hold, stride=stride)
    network = build(make, unfitted | tensors, checkpoint, "BasicVSR")
    return Loaded(network.to(memory_format=torch.channels_last), network.scale)


def _skipping(metadata: Mapping[str, str], path: Path, blocks: int) -> tuple[bool, int]:
    """Whether skipped blocks hold, and the stride."""
    skipped, stride = metadata.get("skipped", "hold"), metadata.get("stride", "1")
    if skipped not in ("hold", "identity"):
        raise UserError(f"{path}: skipped blocks are said to do {shown(skipped)}; possible are hold and identity")
    if not (stride.isascii() and stride.isdigit() and len(stride) < 4 and 1 <= int(stride) <= max(blocks, 1)):
        raise UserError(f"{path}: stride is {shown(stride)}; possible are 1 to {blocks}")
    return skipped == "hold", int(stride)
