"""Stage 1: recurrent training with a pixel loss."""

import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsvsr.models.fastreal import FastRealVSR, save_fastreal
from vsvsr.training.dataset import Dataset
from vsvsr.training.losses import charbonnier


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of stage 1.

    Attributes:
        steps: sequences to train on.
        batch: sequences at once.
        frames: length of a sequence.
        chunk: frames between optimiser steps; the state is carried over, its gradient is not.
        learning_rate: at the start; it falls to a hundredth along a cosine.
        warmup: optimiser steps over which the learning rate rises from zero.
        ema: decay of the averaged weights, which are what is validated and exported.
        bf16: convolutions in bfloat16.
        stateless: force the hidden state to zero in every frame: the per-frame twin of a recurrent network.
        seed: of everything random.
        save_minutes: how often to write a checkpoint and validate.
    """

    steps: int
    batch: int = 4
    frames: int = 30
    chunk: int = 15
    learning_rate: float = 1e-3
    warmup: int = 200
    ema: float = 0.999
    bf16: bool = False
    stateless: bool = False
    seed: int = 0
    save_minutes: float = 5.0


def unroll(
    network: FastRealVSR, frames: Tensor, flows: Tensor, *, hidden: Tensor | None, stateless: bool
) -> tuple[Tensor, Tensor]:
    """Pictures and states for a stretch of frames with known flows.

    Args:
        frames: ``(n, t, 3, h, w)``.
        flows: into the frame before each frame, ``(n, t, 2, h, w)``; the first is unused when ``hidden`` is None.
        hidden: the state after the frame before, or None for a cold start.
        stateless: fuse zeros in every frame.

    Returns:
        Pictures ``(n, t, 3, s h, s w)`` and the last state.
    """
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


@torch.inference_mode()
def validate(network: FastRealVSR, dataset: Dataset, *, stateless: bool) -> float:
    """Mean over the clips of the PSNR in dB (RGB, whole clip) without the first five frames."""
    scores = []
    for index in range(len(dataset)):
        frames, truth, flows = dataset.whole(index)
        flows = torch.cat((torch.zeros_like(flows[:, :1]), flows), dim=1)
        pictures, _ = unroll(network, frames, flows, hidden=None, stateless=stateless)
        error = F.mse_loss(pictures[:, 5:].clamp(0, 1), truth[:, 5:])
        scores.append(-10 * float(torch.log10(error)))
    return float(np.mean(scores))


class Trainer:
    """Trains a network on a data set; what it knows lies in ``folder`` and a new process carries on from there.

    A checkpoint is written between sequences, and a sequence is a function of the seed and its number, so an
    interrupted run ends with the same weights as an uninterrupted one.

    Args:
        network: trained in place.
        config: settings.
        training: crops to learn from.
        validation: whole clips that choose the best weights.
        folder: of checkpoints, exports and the log.
        metadata: goes into every exported file.
    """

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
        self.network, self.config = network.to(memory_format=torch.channels_last), config
        self.training, self.validation = training, validation
        self.folder, self.metadata = folder, metadata
        self.averaged = FastRealVSR(network.config).eval().requires_grad_(False)
        self.averaged.load_state_dict(network.state_dict())
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(self.parameters, lr=config.learning_rate, betas=(0.9, 0.99))
        self.step, self.best, self.seconds = 0, -float("inf"), 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "checkpoint.pt").exists():
            self._load()

    def run(self) -> None:
        """Train to the end."""
        saved = time.monotonic()
        losses: list[float] = []
        while self.step < self.config.steps:
            started = time.monotonic()
            losses.append(self._sequence())
            self.step += 1
            now = time.monotonic()
            self.seconds += now - started
            if now - saved > 60 * self.config.save_minutes or self.step == self.config.steps:
                self._save(float(np.nanmean(losses)))
                saved, losses = time.monotonic(), []

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The current sequence in stretches: frames, truth and flows, a zero flow for the first frame."""
        rng = np.random.default_rng((self.config.seed, self.step))
        frames, truth, flows = self.training.batch(rng, self.config.batch, self.config.frames)
        flows = torch.cat((torch.zeros_like(flows[:, :1]), flows), dim=1)
        for start in range(0, self.config.frames, self.config.chunk):
            part = slice(start, start + self.config.chunk)
            yield frames[:, part], truth[:, part], flows[:, part]

    def _sequence(self) -> float:
        """One sequence, an optimiser step for each of its chunks; returns the mean loss."""
        hidden: Tensor | None = None
        losses: list[float] = []
        for frames, truth, flows in self._chunks():
            for group in self.optimiser.param_groups:
                group["lr"] = self._learning_rate(len(losses))
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.config.bf16):
                pictures, hidden = unroll(self.network, frames, flows, hidden=hidden, stateless=self.config.stateless)
            loss = charbonnier(pictures.float(), truth)
            self.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(self.parameters, 0.5)
            losses.append(float(loss.detach()))
            if not torch.isfinite(norm):
                # A state that has run away spoils the rest of its sequence, and must not spoil the weights.
                break
            self.optimiser.step()
            self._average()
            hidden = hidden.detach()
        return float(np.nanmean(losses))

    def _learning_rate(self, chunk: int) -> float:
        updates = self.step * -(-self.config.frames // self.config.chunk) + chunk
        rise = min(1.0, (updates + 1) / self.config.warmup)
        fall = 0.505 + 0.495 * np.cos(np.pi * self.step / self.config.steps)
        return float(self.config.learning_rate * rise * fall)

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema, (self.step + 1) / (self.step + 10))
        pairs = zip(self.averaged.parameters(), self.network.parameters(), strict=True)
        targets, values = zip(*((a, b) for a, b in pairs if b.requires_grad), strict=True)
        torch._foreach_lerp_(targets, values, 1 - decay)

    def _save(self, loss: float) -> None:
        score = validate(self.averaged, self.validation, stateless=self.config.stateless)
        metadata = {**self.metadata, "steps": str(self.step), "validation_psnr": f"{score:.3f}"}
        save_fastreal(self.averaged, self.folder / "last.safetensors", metadata)
        if score > self.best:
            self.best = score
            save_fastreal(self.averaged, self.folder / "best.safetensors", metadata)
        state = {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "best": self.best,
            "seconds": self.seconds,
        }
        partial = self.folder / "checkpoint.pt.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "checkpoint.pt")
        row = (str(self.step), f"{self.seconds:.0f}", f"{loss:.5f}", f"{score:.3f}")
        with (self.folder / "log.csv").open("a", newline="") as file:
            csv.writer(file).writerow(row)
        print("step {}, {} s, loss {}, validation {} dB".format(*row), flush=True)

    def _load(self) -> None:
        state = torch.load(self.folder / "checkpoint.pt", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.best, self.seconds = state["step"], state["best"], state["seconds"]
