"""Training of FastRealVSR networks by truncated back-propagation through time, whatever the losses.

The recipes give the network, the losses, and a discriminator where they have one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vsvsr.errors import UserError
from vsvsr.evaluation.compare import sheet
from vsvsr.evaluation.metrics import psnr
from vsvsr.models.fastreal import HEAD, FastRealVSR, load, save
from vsvsr.models.fastreal.config import Variant
from vsvsr.models.fastreal.warm_start import can_be_halved, halved
from vsvsr.training.data.clips import Batch, Clips, Crops, write_flows
from vsvsr.training.harness import AveragedWeights, Optimiser, Processes, Row, Schedule, Stateful, means
from vsvsr.training.settings import AveragedSettings, Option

_SAMPLES = 4
"""Validation clips that show up in the sample pictures."""
_COLD = 5
"""Frames after a cold start that are not judged, where a clip is longer."""


@dataclass(frozen=True, kw_only=True)
class RecurrentSettings(AveragedSettings):
    """What the recipes of FastRealVSR networks have in common."""

    chunk: Annotated[int, Option("frames between optimiser steps; the state is carried over, its gradient is not")] = 15
    warmup: Annotated[int, Option("optimiser steps over which the learning rate rises from zero")] = 200
    final_rate: Annotated[float, Option("what is left of the learning rate at the end of a cosine, as a share")] = 0.01
    checkpointing: Annotated[bool, Option("less memory for long chunks, more time")] = False
    stateless: Annotated[bool, Option("force the state to zero in every frame: the per-frame twin")] = False
    hsa: Annotated[Variant | None, Option("attention over the hidden state; by default that of --start")] = None


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A stretch of a batch, and what the network makes of it.

    Attributes:
        pictures: fp32 ``(n, t, 3, s h, s w)``.
        truth: the same shape.
        flows: into the frame before each frame, ``(n, t, 2, h, w)`` in low-resolution pixels; zero for a clip's first.
        targets: further pictures of the truth's shape, by name.
        families: of each sequence's degradation.
    """

    pictures: Tensor
    truth: Tensor
    flows: Tensor
    targets: dict[str, Tensor]
    families: tuple[str, ...]


Losses = Callable[[Chunk], dict[str, Tensor]]
"""Weighted losses by name; the network minimises their sum."""


class Opponent(Protocol):
    """What else learns from the pictures: a discriminator."""

    def train(self, chunk: Chunk) -> dict[str, float]:
        """An update after each of the network's, on pictures without gradient; losses by name."""

    @property
    def parts(self) -> Mapping[str, Stateful]:
        """Everything that this changes, by name."""


class RecurrentTraining:
    """A network, its losses and its data, as a recipe for `vsvsr.training.harness.train`.

    Args:
        network: trained in place; its flow estimator stays as it is.
        settings: of the run.
        losses: of each chunk.
        opponent: trained against; None for none.
        training: crops to learn from, opened with the flows of the network's estimator.
        validation: whole clips to judge by, with such flows too.
        processes: share each batch.
        parameters: groups ``{"params": ..., "lr": ...}``; by default all trainable ones at the learning rate of the
            settings.
        best_by: ``psnr`` to export the weights with the highest one; None where PSNR says little.
    """

    phase = "last"

    def __init__(
        self,
        network: FastRealVSR,
        settings: RecurrentSettings,
        losses: Losses,
        *,
        training: Crops,
        validation: Clips,
        processes: Processes,
        opponent: Opponent | None = None,
        parameters: list[dict[str, Any]] | None = None,
        best_by: str | None = "psnr",
    ) -> None:
        processes.check_batch(settings.batch)
        if settings.chunk < 1:
            raise UserError(f"--chunk {settings.chunk} is not possible; allowed: 1 or more")
        self.network = network.to(processes.device).to(memory_format=torch.channels_last)
        self.averaged = AveragedWeights(self.network, settings.ema)
        self.optimiser = Optimiser(
            [p for p in network.parameters() if p.requires_grad] if parameters is None else parameters,
            learning_rate=settings.learning_rate,
            processes=processes,
            clip=0.5,
        )
        self.settings, self.losses, self.opponent, self.best_by = settings, losses, opponent, best_by
        self._training, self._validation, self._processes = training, validation, processes
        self._schedule = Schedule(
            steps=settings.steps,
            final=settings.final_rate,
            warmup=settings.warmup,
            updates=-(-settings.frames // settings.chunk),
        )

    @property
    def pixels(self) -> int:
        return self.settings.batch * self.settings.frames * self.settings.crop**2

    def step(self, step: int) -> dict[str, float]:
        """One batch of sequences, an optimiser step for each of their chunks; the mean losses by name."""
        hidden: Tensor | None = None
        rows: list[dict[str, float]] = []
        for batch in self.stretches(step):
            with self._precision():
                pictures, hidden = unroll(
                    self.network,
                    batch.frames,
                    batch.flows,
                    hidden=hidden,
                    stateless=self.settings.stateless,
                    checkpointing=self.settings.checkpointing,
                )
            chunk = Chunk(
                pictures=pictures.float(),
                truth=batch.truth,
                flows=batch.flows,
                targets=batch.targets,
                families=batch.families,
            )
            losses = self.losses(chunk)
            total = torch.stack(list(losses.values())).sum()
            updated = self.optimiser.step(total, self._schedule.share(step, len(rows)))
            rows.append({"loss": float(total.detach()), "learning_rate": self.optimiser.learning_rate})
            rows[-1].update({name: float(loss.detach()) for name, loss in losses.items()})
            if not updated:
                # A state that has run away spoils the rest of its sequence, and must not spoil the weights.
                break
            self.averaged.update(step)
            if self.opponent is not None:
                rows[-1].update(self.opponent.train(replace(chunk, pictures=chunk.pictures.detach())))
            hidden = hidden.detach()
        return means(rows)

    def stretches(self, step: int) -> Iterator[Batch]:
        """This process's share of a batch in chunks, a zero flow for the first frame."""
        settings, processes = self.settings, self._processes
        rng = np.random.default_rng((settings.seed, step))
        batch = self._training.batch(rng, settings.batch, index=processes.index, count=processes.count)
        batch = with_first_flow(batch.to(processes.device))
        for start in range(0, settings.frames, settings.chunk):
            yield batch.part(slice(start, start + settings.chunk))

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._processes.device.type, dtype=torch.bfloat16, enabled=self.settings.bf16)

    def validate(self, sample: Path) -> Row:
        network, stateless = self.averaged.network, self.settings.stateless
        return {"psnr": validate(network, self._validation, stateless=stateless, sample=sample)}

    def export(self, path: Path, metadata: dict[str, str]) -> None:
        save(self.averaged.network, path, metadata)

    @property
    def parts(self) -> dict[str, Stateful]:
        opponent = {} if self.opponent is None else self.opponent.parts
        return {
            "network": self.network,
            "averaged": self.averaged.network,
            "optimiser": self.optimiser,
            **opponent,
        }


def continued(path: Path, *, scale: Literal[2, 4] | None = None, hsa: Variant | None = None) -> FastRealVSR:
    """A trained network to train on.

    Attention of another kind is initialised anew, and so is the head for another scale, unless it can be `halved`.

    Args:
        path: the weights.
        scale: 2 or 4; None for that of the weights.
        hsa: attention; None for that of the weights.
    """
    start = load(path).network
    if scale == 2 and can_be_halved(start):
        start = halved(start)
    config = replace(start.config, scale=scale or start.config.scale, hsa=hsa or start.config.hsa)
    network = FastRealVSR(config)
    changed = ("hsa.",) * (config.hsa != start.config.hsa) + HEAD * (config.scale != start.scale)
    kept = {name: value for name, value in start.state_dict().items() if not name.startswith(changed)}
    network.load_state_dict(kept, strict=not changed)
    return network


def open_clips(
    network: FastRealVSR, settings: RecurrentSettings, processes: Processes, *, targets: Sequence[str] = ()
) -> tuple[Crops, Clips]:
    """Crops to train on, and validation clips, with the network's flows; one process writes those that are missing.

    Args:
        network: its flow estimator and its scale count.
        settings: folders and size of the crops.
        processes: this one waits for the main one.
        targets: further pictures of the training clips.
    """
    with processes.main_first():
        flow, _ = (write_flows(folder, network) for folder in (settings.data, settings.validation))
    clips = Clips(settings.data, scale=network.scale, flow=flow, targets=targets)
    validation = Clips(settings.validation, scale=network.scale, flow=flow)
    return Crops(clips, frames=settings.frames, crop=settings.crop), validation


def unroll(
    network: FastRealVSR,
    frames: Tensor,
    flows: Tensor,
    *,
    hidden: Tensor | None,
    stateless: bool,
    checkpointing: bool = False,
) -> tuple[Tensor, Tensor]:
    """Pictures and states for a stretch of frames with known flows.

    Args:
        network: FastRealVSR.
        frames: ``(n, t, 3, h, w)``.
        flows: into the frame before each frame, ``(n, t, 2, h, w)``; the first is unused when ``hidden`` is None.
        hidden: the state after the frame before, or None for a cold start.
        stateless: fuse zeros in every frame.
        checkpointing: keep states and pictures only, and compute the rest again for the gradient.

    Returns:
        Pictures ``(n, t, 3, s h, s w)`` and the last state.
    """
    if checkpointing:
        return _unroll_checkpointed(network, frames, flows, hidden, stateless)
    n, t = frames.shape[:2]
    flat = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    features = network.rb1(flat)
    if stateless:
        states = network.fuse(features, None, None)
        pictures = network.reconstruct(states, flat)
        return pictures.view(n, t, *pictures.shape[1:]), states[t - 1 :: t]
    collected = []
    for i, feature in enumerate(features.view(n, t, *features.shape[1:]).unbind(1)):
        hidden = network.fuse(feature.contiguous(memory_format=torch.channels_last), hidden, flows[:, i])
        collected.append(hidden)
    states = torch.stack(collected, dim=1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    pictures = network.reconstruct(states, flat)
    return pictures.view(n, t, *pictures.shape[1:]), collected[-1]


def _unroll_checkpointed(
    network: FastRealVSR, frames: Tensor, flows: Tensor, hidden: Tensor | None, stateless: bool
) -> tuple[Tensor, Tensor]:
    """`unroll`, frame by frame."""

    def advance(frame: Tensor, flow: Tensor, hidden: Tensor | None) -> Tensor:
        return network.fuse(network.rb1(frame), None if stateless else hidden, flow)

    pictures = []
    for frame, flow in zip(frames.unbind(1), flows.unbind(1), strict=True):
        frame = frame.contiguous(memory_format=torch.channels_last)
        hidden = checkpoint(advance, frame, flow, hidden, use_reentrant=False)
        pictures.append(checkpoint(network.reconstruct, hidden, frame, use_reentrant=False))
    assert hidden is not None  # a clip has frames
    return torch.stack(pictures, dim=1), hidden


@torch.inference_mode()
def validate(network: FastRealVSR, clips: Clips, *, stateless: bool, sample: Path | None = None) -> float:
    """Mean over the clips of the PSNR in dB (RGB, whole clip) without the first frames after the cold start.

    Args:
        network: to judge.
        clips: judged uncropped.
        stateless: fuse zeros in every frame.
        sample: write bicubic enlargement, result and truth of the last frames of some clips to this PNG.
    """
    device = next(network.parameters()).device
    scores = []
    shown: dict[str, list[Tensor]] = {"bicubic": [], "result": [], "truth": []}
    for index in range(len(clips)):
        clip = with_first_flow(clips.whole(index).to(device))
        pictures, _ = unroll(network, clip.frames, clip.flows, hidden=None, stateless=stateless)
        judged = slice(min(_COLD, pictures.shape[1] - 1), None)
        result, truth = (255 * part[:, judged].flatten(1, 2) for part in (pictures.clamp(0, 1), clip.truth))
        scores.append(float(psnr(result, truth)))
        if index < _SAMPLES:
            bicubic = F.interpolate(clip.frames[0, -1:], scale_factor=network.scale, mode="bicubic")
            for name, picture in zip(shown, (bicubic, pictures[0, -1:], clip.truth[0, -1:]), strict=True):
                shown[name].append(picture.cpu())
    if sample is not None:
        sample.parent.mkdir(exist_ok=True)
        height, width = shown["truth"][0].shape[-2:]
        crop = (max(width - 320, 0) // 2, max(height - 240, 0) // 2, min(width, 320), min(height, 240))
        columns = {name: torch.cat(pictures) for name, pictures in shown.items()}
        sheet(columns, frames=list(range(len(columns["truth"]))), crop=crop).save(sample)
    return float(np.mean(scores))


def with_first_flow(batch: Batch) -> Batch:
    """The batch with a zero flow for its first frames."""
    return replace(batch, flows=F.pad(batch.flows, (0, 0, 0, 0, 0, 0, 1, 0)))
