"""MIA: MIA-VSR, masked inter- and intra-frame window attention."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from vsvsr.filters.arguments import Argument
from vsvsr.filters.clip import Clip
from vsvsr.filters.settings import ChunkedSettings

if TYPE_CHECKING:
    from vsvsr.filters.session import FilterSession


DEFAULT_MODEL = "MIAVSR_REDS_x4"


@dataclass(frozen=True, kw_only=True)
class MIASettings(ChunkedSettings):
    """MIA-VSR: masked inter- and intra-frame window attention, with the authors' weights."""

    model: Annotated[
        str,
        Argument("the authors' weights, by name; brought once by `vsvsr weights add FILE`", otherwise=DEFAULT_MODEL),
    ] = ""
    mask: Annotated[bool, Argument("repeat what a block did one frame before where its input has hardly changed")] = (
        True
    )
    refresh: Annotated[
        int,
        Argument(
            "leave nothing out in every N-th frame of a pass", unit="frames", at_least=0, zero="only in the first"
        ),
    ] = 0


def create(settings: MIASettings, clip: Clip) -> "FilterSession":
    """Load the network and make its streaming session."""
    from collections.abc import Iterator, Sequence
    from functools import partial

    from torch import Tensor

    from vsvsr.engine.device import choose_device, compute_type
    from vsvsr.filters.session import open_chunked
    from vsvsr.filters.weights import find_weights
    from vsvsr.models.common import Write
    from vsvsr.models.common.offload import OffloadBuffer
    from vsvsr.models.mia import load, refreshing_gate, threshold_gate

    device = choose_device(settings.device_index)
    dtype = compute_type(clip.format, device, fp16=settings.fp16)
    loaded = load(find_weights("MIA", settings, DEFAULT_MODEL), use_mask=settings.mask)
    network = loaded.place(device, dtype)
    gate = refreshing_gate(settings.refresh) if settings.refresh else threshold_gate
    size = clip.width * clip.height * dtype.itemsize

    def chunks(frames: Sequence[Tensor], emit: range, *, buffer: OffloadBuffer) -> Iterator[Write]:
        features = network.features(frames, emit, buffer=buffer, gate=gate)
        for i, x in zip(emit, features, strict=True):
            yield partial(network.render, x, frames[i])

    result_size = size * network.conv_before_upsample.out_channels
    return open_chunked(chunks, loaded, settings, clip, device, dtype, result_size=result_size)
