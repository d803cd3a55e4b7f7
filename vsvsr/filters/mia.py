"""MIA: MIA-VSR, masked inter- and intra-frame window attention."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vsvsr.errors import UserError
from vsvsr.filters.clip import Clip
from vsvsr.filters.settings import ChunkedSettings, check

if TYPE_CHECKING:
    from vsvsr.filters.opened import Opened


@dataclass(frozen=True, kw_only=True)
class MIASettings(ChunkedSettings):
    """The arguments of ``core.vsvsr.MIA``.

    Attributes:
        mask: repeat what a block did one frame before where its input has hardly changed.
        refresh: leave nothing out in every so many-th frame of a pass; 0 = only in the first.
    """

    mask: bool = True
    refresh: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.refresh >= 0, "refresh", self.refresh, "0 or more frames")


def create(settings: MIASettings, clip: Clip) -> "Opened":
    """Load the network and make its streaming session."""
    from collections.abc import Iterator, Sequence
    from functools import partial

    from torch import Tensor

    from vsvsr import weights
    from vsvsr.filters.chunked_network import ChunkedNetwork
    from vsvsr.filters.opened import Opened, choose_device, compute_type
    from vsvsr.filters.tiling import TileGrid, Write
    from vsvsr.models.mia import load, refreshing_gate, threshold_gate
    from vsvsr.streaming import ChunkedSession

    name = settings.model_path or settings.model
    if not name:
        raise UserError(
            "no weights are shipped; give the official ones with model_path (MIAVSR_REDS_x4.pth or MIAVSR_Vid4_x4.pth, "
            "published by the authors at github.com/LabShuHangGU/MIA-VSR)"
        )
    device = choose_device(settings.device_index)
    dtype = compute_type(clip, device)
    network = load(weights.find(name), use_mask=settings.mask).to(device)
    if dtype.itemsize == 2:
        network.half()
    gate = refreshing_gate(settings.refresh) if settings.refresh else threshold_gate
    feature = 4 * clip.width * clip.height * network.conv_first.out_channels
    stretch = settings.length + 2 * settings.overlap
    offload = device.type != "cpu" and stretch * feature > settings.state_cache * 1_000_000

    def chunks(frames: Sequence[Tensor], emit: range) -> Iterator[Write]:
        features = network.features(frames, emit, offload=offload, gate=gate)
        for i, x in zip(emit, features, strict=True):
            yield partial(network.render, x, frames[i])

    tiles = TileGrid(clip.width, clip.height, settings.tile, settings.tile_pad, smallest=16, scale=4)
    session = ChunkedSession(
        ChunkedNetwork(chunks, device, dtype, tiles, feature),
        frames=clip.frames,
        length=settings.length,
        overlap=settings.overlap,
        budget=settings.state_cache * 1_000_000,
        scene_change=settings.scene_change,
    )
    return Opened(session, device, 4)
