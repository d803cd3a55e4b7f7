"""Temporal shift over clips of any length, exactly and in memory that does not depend on the length.

Every temporal unit needs the reduced features of one frame before and one after. It therefore holds a frame back until
the next one arrives, and the network runs as a pipeline in which each frame advances as far as its inputs allow. Every
frame passes through the operations of a run over the whole clip, so the results are identical to the bit.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr.errors import UserError
from vsvsr.models.common.offload import Buffered, OffloadBuffer
from vsvsr.models.ultra.colour import ColourFix, fix_colour
from vsvsr.models.ultra.network import DECODER_REACH, SCALE, UNET_REACH, VAE_FACTOR, Step, UltraVSR, upscale_bicubic
from vsvsr.models.ultra.rts import TemporalUnit
from vsvsr.models.ultra.schedule import clamp_degradation, one_step, timestep_of
from vsvsr.models.ultra.skips import Skips
from vsvsr.models.ultra.tiles import Tiles

REACH = UNET_REACH + DECODER_REACH
"""Frames to each side on which an output depends."""
ENCODER_TILE, ENCODER_OVERLAP = 376, 8
"""In latent pixels: frames up to 3008 pixels wide are encoded in one piece."""

Moving = tuple[Tensor, Skips]
"""A frame inside the pipeline: running features ``(1, c, h, w)`` and skip connections."""


class Window:
    """One temporal unit over a stream: holds a frame back until the next one arrives."""

    def __init__(self, unit: TemporalUnit, buffer: OffloadBuffer) -> None:
        self._unit = unit
        self._buffer = buffer
        self._before: Tensor | None = None
        self._waiting: tuple[Buffered, Tensor, Skips] | None = None

    def push(self, x: Tensor, skips: Skips) -> Moving | None:
        """Take a frame; gives the one before it, None for the first."""
        reduced = self._unit.reduce(x)
        ready = self._combine(reduced)
        self._waiting = (self._buffer.put(x), self._buffer.keep(reduced), skips)
        return ready

    def finish(self) -> Moving | None:
        """The last frame, whose next frame counts as zero; the window is empty then."""
        ready = self._combine(None)
        if self._before is not None:
            self._buffer.drop(self._before)
        self._before = None
        return ready

    def _combine(self, after: Tensor | None) -> Moving | None:
        if self._waiting is None:
            return None
        buffered, current, skips = self._waiting
        before = torch.zeros_like(current) if self._before is None else self._before
        x = self._unit.combine(
            self._buffer.take(buffered), before, current, torch.zeros_like(current) if after is None else after
        )
        if self._before is not None:
            self._buffer.drop(self._before)
        self._before, self._waiting = current, None
        return x, skips


class Pipeline:
    """Steps over a stream of frames, each as far as possible, with a delay of one frame per temporal unit.

    Args:
        steps: of one stage.
        buffer: for frames and skip connections.
    """

    def __init__(self, steps: Sequence[Step], buffer: OffloadBuffer) -> None:
        self._buffer = buffer
        self._steps = [Window(step, buffer) if isinstance(step, TemporalUnit) else step for step in steps]

    def push(self, x: Tensor, prompt: Tensor | None = None) -> Tensor | None:
        """Take a frame ``(1, c, h, w)``; gives the stage's output for an earlier one once there is one.

        Args:
            x: the frame.
            prompt: see `Skips`.
        """
        return self._advance(0, x, Skips(self._buffer, prompt))

    def finish(self) -> Iterator[Tensor]:
        """Outputs for the frames still inside; the pipeline is empty then."""
        for place, step in enumerate(self._steps):
            if isinstance(step, Window):
                ready = step.finish()
                if ready is not None:
                    output = self._advance(place + 1, *ready)
                    if output is not None:
                        yield output

    def _advance(self, place: int, x: Tensor, skips: Skips) -> Tensor | None:
        for step in self._steps[place:]:
            if isinstance(step, Window):
                ready = step.push(x, skips)
                if ready is None:
                    return None
                x, skips = ready
            else:
                x = step(x, skips)
        return x


class TiledPipeline:
    """A pipeline for each tile of the plane, all at the same frame.

    Args:
        steps: of one stage.
        tiles: of the latent plane.
        factor: side of the output plane over that of the latent plane.
        buffer: shared by the tiles.
    """

    def __init__(self, steps: Sequence[Step], tiles: Tiles, factor: int, buffer: OffloadBuffer) -> None:
        self._tiles = tiles
        self._factor = factor
        self._pipelines = [Pipeline(steps, buffer) for _ in range(len(tiles))]

    def push(self, latents: Tensor, prompt: Tensor | None = None) -> Tensor | None:
        """See :meth:`Pipeline.push`; latents ``(1, 4, h, w)``."""
        tiles = self._tiles.cut(latents)
        outputs = [pipeline.push(tile, prompt) for pipeline, tile in zip(self._pipelines, tiles, strict=True)]
        ready = [output for output in outputs if output is not None]
        return self._tiles.blend(ready, self._factor) if ready else None

    def finish(self) -> Iterator[Tensor]:
        """See :meth:`Pipeline.finish`."""
        for outputs in zip(*(pipeline.finish() for pipeline in self._pipelines), strict=True):
            yield self._tiles.blend(outputs, self._factor)


@dataclass(frozen=True, slots=True)
class Restored:
    """A decoded frame before the colour fix.

    Attributes:
        picture: the network's output ``(1, 3, 4h, 4w)`` in [0, 1].
        frame: the input ``(1, 3, h, w)``.
    """

    picture: Tensor
    frame: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that the result takes besides the frame."""
        return self.picture.nbytes


class Upscaler:
    """The network with the settings of one clip.

    Args:
        network: on its device, in the type it computes in.
        degradation: d of the clip, between 0 (ruined) and 1 (clean); one value for all frames.
        prompt: text embedding ``(1, tokens, width)``.
        later: further embeddings, by the first of the clip's frames that they hold for.
        colour: how the result gets the colours of the input.
        tile: height and width of spatial tiles in latent pixels (8 output pixels), multiples of 8 of at least 16; 0 for
            the whole side.
        overlap: latent pixels that neighbouring tiles have in common in the decoder; in the UNet twice as many.
        budget: bytes of features buffered on the device, the others go to host memory; None for no limit.

    Attributes:
        scale: output pixels per input pixel in each direction.
        reach: frames to each side on which an output depends.
        lead: frames before the first wanted one that the decoder must see.
        frames_seen: frames that went through the UNet so far.
        buffer: of the features, at present.

    Raises:
        UserError: a setting is out of its range.
    """

    scale = SCALE
    reach = REACH
    lead = DECODER_REACH

    def __init__(
        self,
        network: UltraVSR,
        *,
        degradation: float,
        prompt: Tensor,
        later: Mapping[int, Tensor] | None = None,
        colour: ColourFix = "wavelet",
        tile: tuple[int, int] = (96, 96),
        overlap: int = 16,
        budget: int | None = None,
    ) -> None:
        if not 0.0 <= degradation <= 1.0:
            raise UserError(f"degradation is {degradation}; give a number from 0 (ruined) to 1 (clean)")
        if any(side and (side < 16 or side % 8) for side in tile):
            raise UserError(f"tile is {tile}; give multiples of 8 of at least 16, or 0 for the whole side")
        self.network = network
        self.degradation = clamp_degradation(degradation)
        self.colour: ColourFix = colour
        self.tile = tile
        self.overlap = overlap
        self.budget = budget
        self.buffer = OffloadBuffer(budget)
        self.frames_seen = 0
        placed = ((first, text.to(network.device, network.dtype)) for first, text in (later or {}).items())
        self._later = sorted(placed, key=itemgetter(0))
        with torch.inference_mode():
            self._unet = network.unet_steps(timestep_of(self.degradation), prompt.to(network.device, network.dtype))
            self._decoder = network.decoder_steps()

    def restoration(self, skip: int, first: int = 0) -> "Restoration":
        """Begin a stretch of one scene, of which the first ``skip`` frames are context that is not decoded.

        Args:
            skip: see above.
            first: number of its first frame in the clip.
        """
        return Restoration(self, skip, first)

    def prompt_of(self, frame: int) -> Tensor | None:
        """The text embedding of a frame by its number in the clip; None for the clip's own."""
        return next((text for first, text in reversed(self._later) if first <= frame), None)

    def dry_run(self, width: int, height: int, samples: torch.dtype) -> None:
        """Take one black frame through everything, so that memory that is too small shows at construction.

        What waits between frames comes on top, and is bounded by the budget.

        Args:
            width: of the source.
            height: of the source.
            samples: type of the planes.
        """
        black = torch.zeros((3, height, width), device=self.network.device)
        restoration = self.restoration(0)
        restoration.push(black)
        for restored in restoration.finish():
            # Two pictures, as a transfer has them.
            picture, _ = black.new_empty((2, 3, SCALE * height, SCALE * width), dtype=samples)
            self.render(restored, picture.unbind())
        self.frames_seen = 0

    @torch.inference_mode()
    def render(self, restored: Restored, planes: Sequence[Tensor]) -> None:
        """Fix the colours and write the frame.

        Args:
            restored: from a `Restoration`.
            planes: R, G and B, each ``(4h, 4w)`` with any strides, type and device.
        """
        reference = upscale_bicubic(restored.frame.float())
        fixed = fix_colour(restored.picture.float(), reference, self.colour)
        for plane, channel in zip(planes, fixed[0], strict=True):
            plane.copy_(channel)

    def encode(self, frame: Tensor) -> Tensor:
        """Latents ``(1, 4, h / 2, w / 2)``, sides rounded up, of a frame ``(1, 3, h, w)``."""
        upscaled = upscale_bicubic(frame.float())
        height, width = upscaled.shape[-2:]
        padded = F.pad(upscaled, (0, -width % VAE_FACTOR, 0, -height % VAE_FACTOR), mode="reflect")
        tiles = Tiles(
            padded.shape[-2] // VAE_FACTOR,
            padded.shape[-1] // VAE_FACTOR,
            tile=(ENCODER_TILE, ENCODER_TILE) if any(self.tile) else (0, 0),
            overlap=ENCODER_OVERLAP,
        )
        return tiles.blend([self.network.encode(tile) for tile in tiles.cut(padded.to(self.network.dtype), VAE_FACTOR)])

    def stages(self, height: int, width: int) -> tuple[TiledPipeline, TiledPipeline]:
        """Fresh pipelines for latents of that size: to noise, and to pictures in [-1, 1]. Drops buffered features."""
        self.buffer = OffloadBuffer(self.budget)
        unet, decoder = (
            Tiles(height, width, tile=self.tile, overlap=overlap) for overlap in (2 * self.overlap, self.overlap)
        )
        return (
            TiledPipeline(self._unet, unet, 1, self.buffer),
            TiledPipeline(self._decoder, decoder, VAE_FACTOR, self.buffer),
        )


class Restoration:
    """The network over a stretch of one scene, frame by frame.

    With `Upscaler.reach` frames of context on each side, or the end of the clip or scene, the results are those of the
    whole clip to the bit. Fewer frames of context are cheaper and slightly different.

    Args:
        upscaler: network and settings.
        skip: frames at the start that are not decoded.
        first: number of the stretch's first frame in the clip.
    """

    def __init__(self, upscaler: Upscaler, skip: int, first: int = 0) -> None:
        self._upscaler = upscaler
        self._skip = skip
        self._next = first
        self._stages: tuple[TiledPipeline, TiledPipeline] | None = None
        self._frames: deque[Tensor] = deque()
        self._latents: deque[Tensor] = deque()

    @torch.inference_mode()
    def push(self, frame: Tensor) -> Restored | None:
        """Take a frame ``(3, h, w)``, RGB in [0, 1]; gives the one `REACH` frames before it, if any."""
        batch = frame[None].to(self._upscaler.network.device)
        latents = self._upscaler.encode(batch)
        if self._stages is None:
            self._stages = self._upscaler.stages(latents.shape[-2], latents.shape[-1])
        self._frames.append(batch)
        self._latents.append(latents)
        self._upscaler.frames_seen += 1
        noise = self._stages[0].push(latents, self._upscaler.prompt_of(self._next))
        self._next += 1
        picture = None if noise is None else self._denoise(noise)
        return None if picture is None else self._restored(picture)

    @torch.inference_mode()
    def finish(self) -> Iterator[Restored]:
        """The frames still inside, in order; nothing may be pushed afterwards."""
        if self._stages is None:
            return
        unet, decoder = self._stages
        for noise in unet.finish():
            picture = self._denoise(noise)
            if picture is not None:
                yield self._restored(picture)
        for picture in decoder.finish():
            yield self._restored(picture)

    def _denoise(self, noise: Tensor) -> Tensor | None:
        """One diffusion step for the oldest frame in the UNet, and its latents on to the decoder."""
        latents = one_step(self._latents.popleft(), noise, self._upscaler.degradation)
        if self._skip:
            self._skip -= 1
            self._frames.popleft()
            return None
        assert self._stages is not None
        return self._stages[1].push(latents)

    def _restored(self, picture: Tensor) -> Restored:
        frame = self._frames.popleft()
        height, width = (self._upscaler.scale * side for side in frame.shape[-2:])
        return Restored((picture[..., :height, :width].clamp(-1.0, 1.0) + 1.0) / 2.0, frame)
