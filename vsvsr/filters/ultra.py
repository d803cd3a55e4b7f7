"""Ultra: UltraVSR, one diffusion step of Stable Diffusion with temporal shift."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from vsvsr.errors import UserError, check
from vsvsr.filters.arguments import Argument
from vsvsr.filters.clip import Clip
from vsvsr.filters.settings import SMALLEST_TILE, ChunkedSettings

if TYPE_CHECKING:
    from torch import Tensor

    from vsvsr.engine.planes import Frame
    from vsvsr.filters.session import FilterSession
    from vsvsr.models.common.loading import Loaded
    from vsvsr.models.ultra import ColourFix, UltraVSR


DEFAULT_MODEL = "UltraVSR"
BASE = "stable-diffusion-2-1-base"
JUDGE = "CLIP-RN50"


@dataclass(frozen=True, kw_only=True)
class UltraSettings(ChunkedSettings):
    """UltraVSR: one diffusion step with temporal shift, with the authors' weights on Stable Diffusion 2.1-base.

    Frames depend on the 24 around them on both sides. With that much ``overlap`` they are those of the whole clip, and
    playback sees each frame once; less is cheaper to seek in, but every chunk then starts afresh.
    """

    model: Annotated[
        str,
        Argument("the authors' weights, by name; brought once by `vsvsr weights add FILE`", otherwise=DEFAULT_MODEL),
    ] = ""
    tile: Annotated[
        tuple[int, ...],
        Argument(
            "width and height of spatial tiles, rounded down to multiples of 16; they blend into each other",
            unit="pixels of the source",
            at_least=SMALLEST_TILE,
            zero="off",
            each=("width", "height"),
        ),
    ] = (192, 192)
    tile_pad: Annotated[
        int,
        Argument("context around every tile, twice as much in the UNet", unit="pixels of the source", at_least=0),
    ] = 16
    overlap: Annotated[
        int,
        Argument(
            "frames of context before and after a chunk; 24 give the pixels of the whole clip, "
            "less is cheaper to seek in",
            unit="frames",
            at_least=0,
        ),
    ] = 24
    base_path: Annotated[
        str,
        Argument(
            "Stable Diffusion 2.1-base in the layout of diffusers, which the authors' file needs",
            path="folder",
            otherwise="what `vsvsr weights add FOLDER` has brought",
        ),
    ] = ""
    prompt: Annotated[str, Argument("what the clip shows", otherwise="empty")] = ""
    degradation: Annotated[
        float | None,
        Argument(
            "how clean the clip is, from 0 (ruined) to 1 (clean): how little is invented",
            at_least=0,
            at_most=1,
            otherwise="the weights' own, 0.5 for the authors'",
        ),
    ] = None
    clip_iqa_path: Annotated[
        str,
        Argument(
            "instead of `degradation`, OpenAI's CLIP RN50 as safetensors, which measures it on five frames of the clip",
            path="file",
        ),
    ] = ""
    colour: Annotated[
        str,
        Argument("how the result gets the colours of the source", choices=("wavelet", "adain", "none")),
    ] = "wavelet"

    def __post_init__(self) -> None:
        super().__post_init__()
        single = self.degradation is None or not self.clip_iqa_path
        check(single, "clip_iqa_path", self.clip_iqa_path, "either degradation or clip_iqa_path, not both")


def create(settings: UltraSettings, clip: Clip) -> "FilterSession":
    """Load the network and make its streaming session."""
    from functools import partial

    import torch

    from vsvsr.engine.continued import ContinuedNetwork
    from vsvsr.engine.device import choose_device, compute_type
    from vsvsr.engine.memory import feature_budget
    from vsvsr.engine.planes import read
    from vsvsr.filters.session import FilterSession
    from vsvsr.models.ultra import Restored, Upscaler
    from vsvsr.models.ultra.base import tokenise
    from vsvsr.models.ultra.clip_iqa import PAIRS, load_clip_iqa, measure_degradation, sample_indices
    from vsvsr.streaming import ChunkedSession, SampledSession, Segments

    device = choose_device(settings.device_index)
    dtype = compute_type(clip.format, device)
    loaded, prompt = _load(settings)
    network = loaded.place(device, dtype)
    budget = feature_budget(settings.feature_cache, device)

    def upscaler(degradation: float) -> Upscaler:
        return Upscaler(
            network,
            degradation=degradation,
            prompt=prompt,
            colour=cast("ColourFix", settings.colour),
            # Latents have half the sides of the source.
            tile=(settings.tile[1] // 16 * 8, settings.tile[0] // 16 * 8),
            overlap=settings.tile_pad,
            budget=budget,
        )

    segments = Segments(length=settings.length, warmup=settings.overlap)
    model = ContinuedNetwork[Restored](device, dtype)
    session = ChunkedSession(
        model,
        frames=clip.frames,
        length=settings.length,
        overlap=settings.overlap,
        budget=settings.state_cache * 1_000_000,
        scene_change=settings.scene_change,
    )
    if not settings.clip_iqa_path:
        degradation = network.degradation if settings.degradation is None else settings.degradation
        model.model = upscaler(degradation)
        return FilterSession(session, device, loaded.scale, segments)

    tokens = tokenise(_base(settings), [text for pair in PAIRS for text in pair]).to(device)
    judge = load_clip_iqa(Path(settings.clip_iqa_path)).to(device)

    def prepare(samples: "list[Frame]") -> None:
        if not samples:
            raise UserError("no frame could be read to measure the degradation; give degradation instead")
        model.model = upscaler(measure_degradation(judge, tokens, [frame.pixels[0] for frame in samples]))

    sampled = SampledSession(
        session,
        samples=sample_indices(clip.frames),
        read=partial(read, device=device, dtype=torch.float32),
        prepare=prepare,
    )
    return FilterSession(sampled, device, loaded.scale, segments)


def _load(settings: UltraSettings) -> "tuple[Loaded[UltraVSR], Tensor]":
    """The network and the text embedding of the prompt, in fp32 on the CPU."""
    import torch

    from vsvsr.filters.weights import find_weights
    from vsvsr.models.ultra import load
    from vsvsr.models.ultra.base import encode_prompt
    from vsvsr.models.ultra.checkpoints import needs_base

    path = find_weights("Ultra", settings, DEFAULT_MODEL)
    if not needs_base(path):
        check(not settings.prompt, "prompt", settings.prompt, "none with these weights, which know no text")
        loaded = load(path)
        return loaded, torch.zeros(1, 77, loaded.network.unet.config.cross_attention_dim)
    base = _base(settings)
    return load(path, base), encode_prompt(base, settings.prompt)


def _base(settings: UltraSettings) -> Path:
    """The folder of Stable Diffusion 2.1-base."""
    from vsvsr import weights

    return Path(settings.base_path) if settings.base_path else weights.verify(BASE)
