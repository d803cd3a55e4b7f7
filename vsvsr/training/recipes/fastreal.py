"""Stage 1: recurrent training with a pixel loss, on one device or several."""

import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env, reduce
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vsvsr.errors import UserError
from vsvsr.evaluation.compare import sheet
from vsvsr.models.fastreal import FastRealVSR, save_fastreal
from vsvsr.ops import flow_warp
from vsvsr.training.data.clips import Dataset
from vsvsr.training.losses import charbonnier, psnr_loss

PixelLoss = Literal["charbonnier", "psnr"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training.

    Attributes:
        steps: batches of sequences to train on.
        batch: sequences at once, on all devices together.
        frames: length of a sequence.
        chunk: frames between optimiser steps; the state is carried over, its gradient is not.
        learning_rate: at the start.
        final_rate: what is left of it at the end of a cosine, as a share.
        warmup: optimiser steps over which the learning rate rises from zero.
        loss: stage 1's pixel loss.
        steadiness: weight of the same loss between the errors of neighbouring frames, along the motion; 0 leaves it
            out.
        ema: decay of the averaged weights, which are what is validated and exported.
        bf16: mixed precision: convolutions in bfloat16, weights, sums, losses and flows in fp32.
        checkpointing: compute each frame's activations again in the backward pass instead of keeping them.
        stateless: force the hidden state to zero in every frame: the per-frame twin of a recurrent network.
        seed: of everything random.
        save_minutes: how often to write a checkpoint and sample pictures, and validate.
    """

    steps: int
    batch: int = 4
    frames: int = 30
    chunk: int = 15
    learning_rate: float = 1e-3
    final_rate: float = 0.01
    warmup: int = 200
    loss: PixelLoss = "charbonnier"
    steadiness: float = 0.0
    ema: float = 0.999
    bf16: bool = False
    checkpointing: bool = False
    stateless: bool = False
    seed: int = 0
    save_minutes: float = 5.0


def processes() -> PartialState:
    """This process among those that ``accelerate launch`` started, and its device."""
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu)


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


def _follow(pictures: Tensor, flows: Tensor) -> Tensor:
    """Pictures ``(n, t, c, s h, s w)`` warped by the flows ``(n, t, 2, h, w)`` from the frames behind them."""
    scale = pictures.shape[-1] // flows.shape[-1]
    large = scale * F.interpolate(flows.flatten(0, 1), scale_factor=scale, mode="bilinear")
    return flow_warp(pictures.flatten(0, 1), large, padding="border").view_as(pictures)


_SAMPLES = 4
"""Validation clips that show up in the sample pictures."""


@torch.inference_mode()
def validate(network: FastRealVSR, dataset: Dataset, *, stateless: bool, samples: Path | None = None) -> float:
    """Mean over the clips of the PSNR in dB (RGB, whole clip) without the first five frames.

    Args:
        network: to judge.
        dataset: its clips are judged uncropped.
        stateless: fuse zeros in every frame.
        samples: write bicubic enlargement, result and truth of the last frames of some clips to this PNG.
    """
    device = next(network.parameters()).device
    scores = []
    shown: dict[str, list[Tensor]] = {"bicubic": [], "result": [], "truth": []}
    for index in range(len(dataset)):
        frames, truth, flows = (part.to(device) for part in dataset.whole(index))
        flows = torch.cat((torch.zeros_like(flows[:, :1]), flows), dim=1)
        pictures, _ = unroll(network, frames, flows, hidden=None, stateless=stateless)
        error = F.mse_loss(pictures[:, 5:].clamp(0, 1), truth[:, 5:])
        scores.append(-10 * float(torch.log10(error)))
        if samples is not None and index < _SAMPLES:
            bicubic = F.interpolate(frames[0, -1:], scale_factor=network.scale, mode="bicubic")
            for name, picture in zip(shown, (bicubic, pictures[0, -1:], truth[0, -1:]), strict=True):
                shown[name].append(picture.cpu())
    if samples is not None:
        height, width = shown["truth"][0].shape[-2:]
        crop = (max(width - 320, 0) // 2, max(height - 240, 0) // 2, min(width, 320), min(height, 240))
        columns = {name: torch.cat(pictures) for name, pictures in shown.items()}
        sheet(columns, frames=list(range(len(columns["truth"]))), crop=crop).save(samples)
    return float(np.mean(scores))


class Trainer:
    """Trains a network on a data set; what it knows lies in ``folder`` and a new process carries on from there.

    A checkpoint is written between sequences, and a sequence is a function of the seed and its number, so on a CPU an
    interrupted run ends with the same weights as an uninterrupted one. Under ``accelerate launch`` each process takes
    its share of every batch and the gradients are averaged: the weights are those of one process, up to rounding.

    Args:
        network: trained in place.
        config: settings.
        training: crops to learn from.
        validation: whole clips that choose the best weights.
        folder: of checkpoints, exports, the log and sample pictures.
        metadata: goes into every exported file.

    Raises:
        UserError: the batch cannot be shared evenly among the processes.
    """

    _best_by_psnr: ClassVar[bool] = True

    def __init__(
        self,
        network: FastRealVSR,
        config: TrainConfig,
        *,
        training: Dataset,
        validation: Dataset,
        folder: Path,
        metadata: dict[str, str],
    ) -> None:
        self.processes = processes()
        self.device = self.processes.device
        if config.batch % self.processes.num_processes:
            raise UserError(
                f"a batch of {config.batch} cannot be shared by {self.processes.num_processes} processes; "
                "give a multiple of their number"
            )
        self.network, self.config = network.to(self.device).to(memory_format=torch.channels_last), config
        self.training, self.validation = training, validation
        self.folder, self.metadata = folder, metadata
        self.averaged = FastRealVSR(network.config).to(self.device).eval().requires_grad_(False)
        self.averaged.load_state_dict(network.state_dict())
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(self.parameters, lr=config.learning_rate, betas=(0.9, 0.99))
        self.step, self.best, self.seconds = 0, -float("inf"), 0.0
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self) -> None:
        """Carry on from the checkpoint in the folder, if there is one."""
        path = self.folder / "checkpoint.pt"
        if path.exists():
            self._restore(torch.load(path, map_location=self.device, weights_only=True))

    def run(self) -> None:
        """Train to the end."""
        self.resume()
        saved, saved_seconds = time.monotonic(), self.seconds
        rows: list[dict[str, float]] = []
        while self.step < self.config.steps:
            started = time.monotonic()
            rows.append(self._sequence())
            self.step += 1
            now = time.monotonic()
            self.seconds += now - started
            if now - saved > 60 * self.config.save_minutes or self.step == self.config.steps:
                if self.processes.is_main_process:
                    self._save(rows, self.seconds - saved_seconds)
                saved, saved_seconds, rows = time.monotonic(), self.seconds, []

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The current sequence in stretches: frames, truth and flows, a zero flow for the first frame."""
        rng = np.random.default_rng((self.config.seed, self.step))
        part = (self.processes.process_index, self.processes.num_processes)
        batch = self.training.batch(rng, self.config.batch, self.config.frames, part=part)
        frames, truth, flows = (tensor.to(self.device) for tensor in batch)
        flows = torch.cat((torch.zeros_like(flows[:, :1]), flows), dim=1)
        for start in range(0, self.config.frames, self.config.chunk):
            stretch = slice(start, start + self.config.chunk)
            yield frames[:, stretch], truth[:, stretch], flows[:, stretch]

    def _sequence(self) -> dict[str, float]:
        """One batch of sequences, an optimiser step for each of their chunks; returns the mean losses by name."""
        config = self.config
        hidden: Tensor | None = None
        rows: list[dict[str, float]] = []
        for frames, truth, flows in self._chunks():
            for group in self.optimiser.param_groups:
                group["lr"] = self._learning_rate(len(rows))
            with self._precision():
                pictures, hidden = unroll(
                    self.network,
                    frames,
                    flows,
                    hidden=hidden,
                    stateless=config.stateless,
                    checkpointing=config.checkpointing,
                )
            pictures = pictures.float()
            losses = self._losses(pictures, truth, flows)
            losses = {"loss": torch.stack(list(losses.values())).sum(), **losses}
            self._backward(self.optimiser, losses["loss"])
            norm = nn.utils.clip_grad_norm_(self.parameters, 0.5)
            rows.append({name: float(loss.detach()) for name, loss in losses.items()})
            if not torch.isfinite(norm):
                # A state that has run away spoils the rest of its sequence, and must not spoil the weights.
                break
            self.optimiser.step()
            self._average()
            rows[-1].update(self._train_critic(pictures.detach(), truth))
            hidden = hidden.detach()
        return _means(rows)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.bf16)

    def _losses(self, pictures: Tensor, truth: Tensor, flows: Tensor) -> dict[str, Tensor]:
        """Weighted losses by name, for the network to minimise the sum of.

        Args:
            pictures: ``(n, t, 3, s h, s w)``.
            truth: the same shape.
            flows: into the frame before each frame, ``(n, t, 2, h, w)`` in low-resolution pixels.
        """
        pixel_loss = psnr_loss if self.config.loss == "psnr" else charbonnier
        losses = {"pixel": pixel_loss(pictures, truth)}
        if self.config.steadiness and pictures.shape[1] > 1:
            errors = pictures - truth
            before = _follow(errors[:, :-1], flows[:, 1:])
            losses["steadiness"] = self.config.steadiness * pixel_loss(errors[:, 1:], before)
        return losses

    def _train_critic(self, pictures: Tensor, truth: Tensor) -> dict[str, float]:
        """What else learns from the pictures after each step of the network: nothing in this stage."""
        return {}

    def _backward(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        """Gradients of a loss, averaged over the processes."""
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.processes.num_processes > 1:
            parameters = [p for group in optimiser.param_groups for p in group["params"]]
            gradients = [p.grad for p in parameters if p.grad is not None]
            total = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
            parts = total.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view(gradient.shape))

    def _learning_rate(self, chunk: int) -> float:
        updates = self.step * -(-self.config.frames // self.config.chunk) + chunk
        rise = min(1.0, (updates + 1) / self.config.warmup)
        final = self.config.final_rate
        fall = (1 + final) / 2 + (1 - final) / 2 * np.cos(np.pi * self.step / self.config.steps)
        return float(self.config.learning_rate * rise * fall)

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema, (self.step + 1) / (self.step + 10))
        pairs = zip(self.averaged.parameters(), self.network.parameters(), strict=True)
        targets, values = zip(*((a, b) for a, b in pairs if b.requires_grad), strict=True)
        torch._foreach_lerp_(targets, values, 1 - decay)

    def _save(self, rows: list[dict[str, float]], seconds: float) -> None:
        """Validate, export, write the checkpoint and a row of the log about the last ``seconds``."""
        samples = self.folder / "samples"
        samples.mkdir(exist_ok=True)
        picture = samples / f"{self.step:07d}.png"
        score = validate(self.averaged, self.validation, stateless=self.config.stateless, samples=picture)
        metadata = {**self.metadata, "steps": str(self.step), "validation_psnr": f"{score:.3f}"}
        save_fastreal(self.averaged, self.folder / "last.safetensors", metadata)
        if self._best_by_psnr and score > self.best:
            self.best = score
            save_fastreal(self.averaged, self.folder / "best.safetensors", metadata)
        partial = self.folder / "checkpoint.pt.partial"
        torch.save(self._state(), partial)
        partial.replace(self.folder / "checkpoint.pt")
        losses = _means(rows)
        pixels = len(rows) * self.config.batch * self.config.frames * self.training.crop**2
        row = {
            "step": str(self.step),
            "seconds": f"{self.seconds:.0f}",
            "loss": f"{losses.pop('loss'):.5f}",
            "psnr": f"{score:.3f}",
            "lr_pixels_per_second": f"{pixels / seconds:.0f}",
            "learning_rate": f"{self.optimiser.param_groups[0]['lr']:.3e}",
            **{name: f"{value:.5f}" for name, value in losses.items()},
        }
        with (self.folder / "log.csv").open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if not file.tell():
                writer.writeheader()
            writer.writerow(row)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "best": self.best,
            "seconds": self.seconds,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.best, self.seconds = state["step"], state["best"], state["seconds"]


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every entry over the rows, broken ones left out."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.nanmean([row[name] for row in rows if name in row])) for name in names}
