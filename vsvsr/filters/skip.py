"""Skip: SkipVSR, BasicVSR whose residual blocks are skipped where the picture did not change."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vsvsr.errors import check
from vsvsr.filters.clip import Clip
from vsvsr.filters.settings import ChunkedSettings

if TYPE_CHECKING:
    from vsvsr.filters.session import FilterSession

DEFAULT_MODEL = "BasicVSR_REDS4"
MODES = ("frame", "patch")


@dataclass(frozen=True, kw_only=True)
class SkipSettings(ChunkedSettings):
    """The arguments of ``core.vsvsr.Skip``.

    Attributes:
        threshold: blocks run where the execution confidence is at least this; 0 = everywhere, which is BasicVSR.
        budget: instead of a threshold, the share of blocks that shall run, from 0 to 1, on footage like the
            calibration's.
        mode: ``frame`` or, as in the paper, ``patch``.
    """

    threshold: float = 0.0
    budget: float | None = None
    mode: str = "frame"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.threshold <= 1, "threshold", self.threshold, "0 to 1")
        check(self.budget is None or 0 <= self.budget <= 1, "budget", self.budget, "0 to 1")
        single = self.threshold == 0 or self.budget is None
        check(single, "budget", self.budget, "either threshold or budget, not both")
        check(self.mode in MODES, "mode", self.mode, " or ".join(MODES))


def create(settings: SkipSettings, clip: Clip) -> "FilterSession":
    """Load the network and make its streaming session."""
    from functools import partial

    from vsvsr import weights
    from vsvsr.engine.device import choose_device, compute_type
    from vsvsr.filters.session import offloads, open_chunked
    from vsvsr.filters.weights import find_weights
    from vsvsr.models.skipvsr import SkipVSR, load

    device = choose_device(settings.device_index)
    dtype = compute_type(clip.format, device)
    name = settings.model or DEFAULT_MODEL
    # The threshold that a budget stands for is known only when the quantiles are.
    threshold = settings.threshold if settings.budget is None else 1.0
    network = SkipVSR(threshold=threshold, mode="patch" if settings.mode == "patch" else "frame")
    estimators = f"skip-estimators-{name}" if threshold and not settings.model_path else None
    checkpoint = find_weights("Skip", settings, DEFAULT_MODEL)
    load(network, checkpoint, weights.verify(estimators) if estimators else None)
    if settings.budget is not None:
        network.threshold = network.threshold_of(settings.budget)
    network.eval().requires_grad_(False).to(device)
    if dtype.itemsize == 2:
        network.half()
    feature = clip.width * clip.height * network.fusion.out_channels * dtype.itemsize
    offload = offloads(settings, device, settings.length * feature)
    chunks = partial(network.chunk, offload=offload)
    return open_chunked(chunks, settings, clip, device, dtype, scale=network.scale, result_size=feature)
