"""FastReal: FastRealVSR, a unidirectional recurrent network with hidden state attention."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from vsvsr.errors import check
from vsvsr.filters.arguments import Argument
from vsvsr.filters.clip import Clip
from vsvsr.filters.settings import SMALLEST_TILE, RecurrentSettings

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from vsvsr.engine.onnx import OnnxNetwork
    from vsvsr.engine.recurrent import RecurrentNetwork
    from vsvsr.filters.session import FilterSession
    from vsvsr.models.fastreal import Restarts
    from vsvsr.models.fastreal.checkpoints import LoadedFastReal
    from vsvsr.streaming import Segments


DEFAULT_MODEL = "fastreal-x4"


@dataclass(frozen=True, kw_only=True)
class FastRealSettings(RecurrentSettings):
    """FastRealVSR: recurrent super-resolution of real-world video."""

    model: Annotated[str, Argument("weights in the package, by name", otherwise=DEFAULT_MODEL)] = ""
    backend: Annotated[
        str,
        Argument(
            "what runs the network: PyTorch, or ONNX Runtime (`vsvsr[onnx]`) on whatever it has a provider for; they "
            "differ in the last bits",
            choices=("torch", "onnx"),
        ),
    ] = "torch"


def create(settings: FastRealSettings, clip: Clip) -> "FilterSession":
    """Load the network and make its streaming session."""
    from vsvsr.engine.scenes import SceneDetector
    from vsvsr.filters.session import FilterSession
    from vsvsr.filters.weights import find_weights
    from vsvsr.models.fastreal import load
    from vsvsr.streaming import RecurrentSession

    path = find_weights("FastReal", settings, DEFAULT_MODEL)
    loaded = load(path)
    segments = _segments(settings, loaded.restarts)
    model, device, tile = open_model(settings, clip, path, loaded)
    session = RecurrentSession(
        model,
        segments,
        budget=settings.state_cache * 1_000_000,
        preview=settings.preview,
        scene_change=settings.scene_change > 0,
        detector=SceneDetector() if settings.scene_change == 1 else None,
    )
    return FilterSession(session, device, loaded.scale, segments, tile)


def open_model(
    settings: FastRealSettings, clip: Clip, path: "Path", loaded: "LoadedFastReal"
) -> "tuple[RecurrentNetwork[Any], torch.device, tuple[int, int]]":
    """The network with its back end, where it hands over frames and pictures, and the tiles that were chosen.

    Args:
        settings: of the filter.
        clip: what the frames look like.
        path: of the weights.
        loaded: the network.
    """
    from collections.abc import Sequence
    from functools import partial

    from vsvsr.engine.device import choose_device, compute_type, sample_type
    from vsvsr.engine.memory import fit_tiles, rehearse
    from vsvsr.engine.recurrent import Network, RecurrentNetwork
    from vsvsr.engine.tiling import TileGrid

    onnx = None
    if settings.backend == "onnx":
        onnx = _in_onnx(settings, clip, path, loaded)
        network: Network[Any] = onnx
        device, dtype = onnx.device, onnx.dtype
    else:
        device = choose_device(settings.device_index)
        dtype = compute_type(clip.format, device, fp16=settings.fp16)
        network = loaded.place(device, dtype)

    def open_tiles(tile: Sequence[int]) -> RecurrentNetwork[Any]:
        tiles = TileGrid(
            clip.width, clip.height, tile, settings.tile_pad, smallest=loaded.smallest_side, scale=loaded.scale
        )
        model = RecurrentNetwork(network, device, dtype, tiles)
        if onnx is not None:
            onnx.prepare(tiles.sizes)
        dry_run = partial(model.dry_run, clip.width, clip.height, sample_type(clip.format))
        rehearse(device, dry_run, limited=onnx is not None and not onnx.on_cpu)
        return model

    model, tile = fit_tiles(settings.tile, clip.width, clip.height, open_tiles, smallest=SMALLEST_TILE)
    return model, device, tile


def _in_onnx(settings: FastRealSettings, clip: Clip, path: "Path", loaded: "LoadedFastReal") -> "OnnxNetwork":
    """The network in ONNX Runtime; its files are written where they are not there yet."""
    from functools import partial

    import torch

    from vsvsr.engine.onnx import OnnxNetwork, choose_provider, kept
    from vsvsr.models.fastreal.step import OPSET, Picture, Propagate, write_onnx

    provider = choose_provider(settings.device_index)
    half = (settings.fp16 or clip.format == "RGBH") and provider.index >= 0
    dtype = torch.float16 if half else torch.float32
    network = loaded.network.half() if dtype == torch.float16 else loaded.network
    propagate, picture = (
        kept(path, dtype, f"{type(form).__name__.lower()}-{OPSET}", partial(write_onnx, form))
        for form in (Propagate(network), Picture(network))
    )
    return OnnxNetwork(propagate, picture, provider, dtype, scale=loaded.scale, channels=network.config.channels)


def _segments(settings: FastRealSettings, restarts: "Restarts") -> "Segments":
    """The grid of restarts: what the settings give, else what belongs to the weights, but no warm-up longer than a
    segment."""
    from vsvsr.streaming import Segments

    segment = restarts.segment if settings.segment is None else settings.segment
    warmup = settings.warmup
    if warmup is None:
        warmup = min(restarts.warmup, segment) if segment else restarts.warmup
    check(not segment or warmup <= segment, "warmup", warmup, f"at most {segment}, the segment of the weights")
    return Segments(length=segment, warmup=warmup)
