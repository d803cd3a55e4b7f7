"""Skip: SkipVSR, BasicVSR whose residual blocks are skipped where the picture did not change."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from vsvsr.errors import check
from vsvsr.filters.arguments import Argument
from vsvsr.filters.clip import Clip
from vsvsr.filters.settings import ChunkedSettings

if TYPE_CHECKING:
    from vsvsr.filters.session import FilterSession

DEFAULT_MODEL = "BasicVSR_REDS4"


@dataclass(frozen=True, kw_only=True)
class SkipSettings(ChunkedSettings):
    """SkipVSR: BasicVSR with its published weights, whose residual blocks can be skipped where nothing changed."""

    model: Annotated[
        str, Argument("published weights, by name; installed by `vsvsr weights install NAME`", otherwise=DEFAULT_MODEL)
    ] = ""
    auto_download: Annotated[
        bool, Argument("install the weights that `model` names, where they are not, when the script is evaluated")
    ] = False
    threshold: Annotated[
        float,
        Argument(
            "blocks run where the execution confidence is at least this; 0 = everywhere, which is BasicVSR itself",
            at_least=0,
            at_most=1,
        ),
    ] = 0.0
    budget: Annotated[
        float | None,
        Argument(
            "instead of `threshold`, the share of blocks that shall run where everything moves, as in the calibration; "
            "fewer run where something rests",
            at_least=0,
            at_most=1,
            otherwise="`threshold` decides",
        ),
    ] = None
    mode: Annotated[
        str,
        Argument(
            "where blocks are skipped: on tiles of the whole frame, or in overlapping patches of 48x48 pixels",
            choices=("frame", "patch"),
        ),
    ] = "frame"

    def __post_init__(self) -> None:
        super().__post_init__()
        single = self.threshold == 0 or self.budget is None
        check(single, "budget", self.budget, "either threshold or budget, not both")


def estimators_of(checkpoint: str) -> str | None:
    """The shipped estimators of published weights; None for those that hold their own, or need none."""
    from vsvsr import weights

    name = f"skip-estimators-{checkpoint}"
    return name if any(row.name == name for row in weights.MANIFEST) else None


def create(settings: SkipSettings, clip: Clip) -> "FilterSession":
    """Load the network and make its streaming session."""
    from vsvsr import weights
    from vsvsr.engine.device import choose_device, compute_type
    from vsvsr.filters.session import open_chunked
    from vsvsr.filters.weights import find_weights
    from vsvsr.models.skipvsr import load

    device = choose_device(settings.device_index)
    dtype = compute_type(clip.format, device, fp16=settings.fp16)
    name = settings.model or DEFAULT_MODEL
    # The threshold that a budget stands for is known only when the quantiles are.
    threshold = settings.threshold if settings.budget is None else 1.0
    estimators = estimators_of(name) if threshold and not settings.model_path else None
    checkpoint = find_weights("Skip", settings, DEFAULT_MODEL, download=settings.auto_download)
    loaded = load(
        checkpoint,
        weights.verify(estimators) if estimators else None,
        threshold=threshold,
        mode="patch" if settings.mode == "patch" else "frame",
    )
    network = loaded.place(device, dtype)
    if settings.budget is not None:
        network.threshold = network.threshold_of(settings.budget)
    feature = clip.width * clip.height * network.fusion.out_channels * dtype.itemsize
    return open_chunked(network.chunk, loaded, settings, clip, device, dtype, result_size=feature)
