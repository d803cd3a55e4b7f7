"""Ultra: UltraVSR, one diffusion step of Stable Diffusion with temporal shift."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from vsvsr.errors import UserError, check
from vsvsr.filters.arguments import Argument, exists
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
_LONGEST = 1 << 20
"""Bytes of a file of prompts."""
_log = logging.getLogger(__name__)


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
    prompt: Annotated[
        str,
        Argument(
            "what the clip shows; or a text file of lines `frame: text`, each of which holds from that frame on",
            listed=True,
            otherwise="empty",
        ),
    ] = ""
    prompt_embeds: Annotated[
        str,
        Argument(
            "instead of `prompt`, text embeddings as safetensors: tensors (tokens, width), each named by the frame "
            "from which on it holds",
            path="file",
        ),
    ] = ""
    degradation: Annotated[
        float | None,
        Argument(
            "how clean the clip is, from 0 (ruined) to 1 (clean): how little is invented",
            at_least=0,
            at_most=1,
            otherwise="the weights' own; for the authors' measured on five frames of the clip if CLIP RN50 was added, "
            "else 0.5",
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
        single = not (self.prompt and self.prompt_embeds)
        check(single, "prompt_embeds", self.prompt_embeds, "either prompt or prompt_embeds, not both")


def create(settings: UltraSettings, clip: Clip) -> "FilterSession":
    """Load the network and make its streaming session."""
    from collections.abc import Sequence
    from functools import partial

    import torch

    from vsvsr.engine.continued import ContinuedNetwork
    from vsvsr.engine.device import choose_device, compute_type, sample_type
    from vsvsr.engine.memory import feature_budget, fit_tiles, rehearse
    from vsvsr.engine.planes import read
    from vsvsr.filters.session import in_chunks
    from vsvsr.models.ultra import Restored, Upscaler
    from vsvsr.models.ultra.base import tokenise
    from vsvsr.models.ultra.clip_iqa import PAIRS, load_clip_iqa, measure_degradation, sample_indices
    from vsvsr.ops import pin_convolutions
    from vsvsr.streaming import SampledSession

    device = choose_device(settings.device_index)
    dtype = compute_type(clip.format, device, fp16=settings.fp16)
    loaded, prompts, judge_path = _load(settings)
    network = loaded.place(device, dtype)

    def upscaler(degradation: float, tile: Sequence[int], budget: int | None) -> Upscaler:
        return Upscaler(
            network,
            degradation=degradation,
            prompt=prompts[0],
            later=prompts,
            colour=cast("ColourFix", settings.colour),
            # Latents have half the sides of the source.
            tile=(tile[1] // 16 * 8, tile[0] // 16 * 8),
            overlap=settings.tile_pad,
            budget=budget,
        )

    def rehearsed(tile: Sequence[int]) -> None:
        trial = upscaler(network.degradation, tile, 0)
        rehearse(device, partial(trial.dry_run, clip.width, clip.height, sample_type(clip.format)))

    _, tile = fit_tiles(settings.tile, clip.width, clip.height, rehearsed, smallest=SMALLEST_TILE)
    budget = feature_budget(settings.feature_cache, device)
    model = ContinuedNetwork[Restored](device, dtype)
    opened = in_chunks(model, settings, clip, device, loaded.scale, tile)
    if judge_path is None:
        degradation = network.degradation if settings.degradation is None else settings.degradation
        model.model = upscaler(degradation, tile, budget)
        return opened

    tokens = tokenise(_base(settings), [text for pair in PAIRS for text in pair]).to(device)
    judge = load_clip_iqa(judge_path).to(device)
    pin_convolutions(judge)

    def prepare(samples: "list[Frame]") -> None:
        if not samples:
            raise UserError("no frame could be read to measure the degradation; give degradation instead")
        degradation = measure_degradation(judge, tokens, [frame.pixels[0] for frame in samples])
        model.model = upscaler(degradation, tile, budget)

    sampled = SampledSession(
        opened.session,
        samples=sample_indices(clip.frames),
        read=partial(read, device=device, dtype=torch.float32),
        prepare=prepare,
    )
    return replace(opened, session=sampled)


def _load(settings: UltraSettings) -> "tuple[Loaded[UltraVSR], dict[int, Tensor], Path | None]":
    """The network, text embeddings by the first frame that each holds for, both in fp32 on the CPU, and CLIP's file."""
    import torch

    from vsvsr.filters.weights import find_weights
    from vsvsr.models.ultra import load
    from vsvsr.models.ultra.base import encode_prompt
    from vsvsr.models.ultra.checkpoints import needs_base

    path = find_weights("Ultra", settings, DEFAULT_MODEL)
    if needs_base(path):
        base = _base(settings)
        loaded = load(path, base)
        judge = _judge(settings, measured=True)
    else:
        check(not settings.prompt, "prompt", settings.prompt, "none with these weights, which know no text")
        loaded = load(path)
        judge = _judge(settings, measured=False)
    width = loaded.network.unet.config.cross_attention_dim
    if settings.prompt_embeds:
        prompts = _embeddings(settings.prompt_embeds, width)
        return loaded, {0: torch.zeros(1, 77, width), **prompts}, judge
    if not needs_base(path):
        return loaded, {0: torch.zeros(1, 77, width)}, judge
    texts = {0: "", **_prompts(settings.prompt)}
    return loaded, {frame: encode_prompt(base, text) for frame, text in texts.items()}, judge


def _judge(settings: UltraSettings, *, measured: bool) -> Path | None:
    """The file of the network that measures the degradation, if it is to be measured."""
    from vsvsr import weights

    if settings.clip_iqa_path:
        return Path(settings.clip_iqa_path)
    if settings.degradation is not None or not measured:
        return None
    if any(row.name == JUDGE and weights.present(row) for row in weights.MANIFEST):
        return weights.verify(JUDGE)
    _log.info("degradation is 0.5; it is measured once CLIP RN50 was added: vsvsr weights add FILE")
    return None


def _prompts(prompt: str) -> dict[int, str]:
    """Texts by the first frame that each holds for: one text, or those of a file of lines ``frame: text``."""
    if not exists(Path(prompt), "file"):
        return {0: prompt}
    allowed = "a text, or a UTF-8 file of lines `frame: text`"
    try:
        lines = Path(prompt).read_text("utf-8-sig").splitlines() if Path(prompt).stat().st_size < _LONGEST else [""]
    except (OSError, UnicodeDecodeError):
        lines = [""]
    parts = [line.partition(":") for line in lines if line.strip()]
    numbers = [_frame(number) for number, _, _ in parts]
    fine = bool(parts) and all(colon for _, colon, _ in parts) and None not in numbers
    check(fine and len(set(numbers)) == len(numbers), "prompt", prompt, allowed)
    return {number: text.strip() for number, (_, _, text) in zip(numbers, parts, strict=True) if number is not None}


def _embeddings(path: str, width: int) -> "dict[int, Tensor]":
    """Text embeddings ``(1, tokens, width)`` of a file, by the first frame that each holds for."""
    from vsvsr import weights

    found: dict[int, Tensor] = {}
    tensors = weights.read_tensors(Path(path))[0]
    for name, tensor in tensors.items():
        number, shape = _frame(name), tuple(tensor.shape)
        fine = number is not None and len(shape) == 2 and shape[0] > 0 and shape[1] == width
        allowed = f"tensors of shape (tokens, {width}), each named by a frame's number"
        check(fine and tensor.is_floating_point(), "prompt_embeds", f"{path}: {name} {shape}", allowed)
        found[number or 0] = tensor.float()[None]
    check(bool(found), "prompt_embeds", path, "a file with at least one tensor")
    return found


def _frame(text: str) -> int | None:
    """A frame's number, or None where a text is none."""
    digits = text.strip()
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else None


def _base(settings: UltraSettings) -> Path:
    """The folder of Stable Diffusion 2.1-base."""
    from vsvsr import weights

    return Path(settings.base_path) if settings.base_path else weights.verify(BASE)
