"""MIA-VSR: first without masks, then with mask predictors under a sparsity loss.

``python -m vsvsr.training.recipes.mia DATA VALIDATION RUN`` trains on the clips of ``python -m vsvsr.training build``,
and carries on where it was interrupted. On several GPUs:
``accelerate launch --num_processes 4 -m vsvsr.training.recipes.mia ...``.
"""

import argparse
import copy
import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import reduce
from safetensors.torch import save_file
from torch import Tensor

from vsvsr import weights
from vsvsr.errors import UserError
from vsvsr.models.mia import MIAVSR, KeepRatios, MaskSite, threshold_gate
from vsvsr.models.mia.gates import TEMPERATURE, Gate
from vsvsr.training.data.clips import Clips
from vsvsr.training.losses import charbonnier
from vsvsr.training.recipes.fastreal import processes

_EPSILON = 1e-8
_BORDER = 16
"""High-resolution pixels on each side of a crop that are not judged: convolutions see zeros beyond it, and errors that
belong to the rim, a large part of a crop and a small one of a frame, would rule the training."""


@dataclass(frozen=True, kw_only=True)
class MIATrainConfig:
    """Settings; the defaults are those of the authors, but for the number of steps.

    Attributes:
        steps: of the first phase, every position computed.
        mask_steps: of the second phase, with masks.
        sparsity: weight of the share of kept positions in the loss of the second phase (lambda).
        learning_rate: falls to zero along a cosine in each phase.
        batch: clips at once, on all devices together.
        ema: decay of the averaged weights, which are what is validated and exported.
        bf16: mixed precision; flows, mask logits and losses stay in fp32.
        seed: of everything random.
        save_minutes: how often to validate, export and write a checkpoint.
        validation_crops: to judge by.
    """

    steps: int
    mask_steps: int
    sparsity: float = 1e-4
    learning_rate: float = 2e-4
    batch: int = 1
    ema: float = 0.999
    bf16: bool = False
    seed: int = 0
    save_minutes: float = 5.0
    validation_crops: int = 12


def keep_all(site: MaskSite, logits: Tensor) -> Tensor:
    """The gate of the first phase."""
    return torch.ones_like(logits, dtype=torch.bool)


class GumbelGate:
    """Hard masks of noisy logits with the gradient of the soft ones (eq. 7 and 8), and the share that they keep.

    ``soft = sigmoid((logit + g1 - g2) / (2/3))`` with Gumbel noise g; 1 where ``soft >= 0.5``.
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def __call__(self, site: MaskSite, logits: Tensor) -> Tensor:
        noise = [-torch.log(-torch.log(torch.rand_like(logits) + _EPSILON) + _EPSILON) for _ in range(2)]
        soft = torch.sigmoid((logits + noise[0] - noise[1]) / TEMPERATURE)
        mask = (soft >= 0.5).float() - soft.detach() + soft
        self._kept.append(mask.mean())
        return mask

    def sparsity(self) -> Tensor:
        """Mean share of kept positions over modules, frames after the first, and blocks."""
        return torch.stack(self._kept).mean()


class Trainer:
    """Both phases; what it knows lies in ``folder``, and a new process carries on from there.

    The flow network stays as it is: patch alignment rounds the flow to whole pixels, so no gradient reaches it.

    A step is a function of weights, optimiser, seed and its number, so on a CPU an interrupted run ends with the same
    weights as an uninterrupted one. Under ``accelerate launch`` each process takes its share of every batch and the
    gradients are averaged.

    Args:
        network: trained in place.
        config: settings.
        clips: to learn from.
        validation: clips to judge by.
        folder: of the checkpoint, ``log.csv`` and the averaged weights of each phase, ``dense`` and ``masked``.

    Raises:
        UserError: the batch cannot be shared evenly among the processes.
    """

    def __init__(
        self, network: MIAVSR, config: MIATrainConfig, *, clips: Clips, validation: Clips, folder: Path
    ) -> None:
        self.processes = processes()
        if config.batch % self.processes.num_processes:
            raise UserError(
                f"a batch of {config.batch} cannot be shared by {self.processes.num_processes} processes; "
                "give a multiple of their number"
            )
        self.config, self.clips, self.validation, self.folder = config, clips, validation, folder
        self.network = network.to(self.processes.device).to(memory_format=torch.channels_last).train()
        self.averaged = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.network.spynet.requires_grad_(False)
        self.optimiser = self._new_optimiser()
        self.step, self.seconds = 0, 0.0

    def run(self) -> None:
        """Train to the end."""
        config = self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "checkpoint.pt"
        if path.exists():
            self._restore(torch.load(path, map_location=self.processes.device, weights_only=True))
        ends = (config.steps, config.steps + config.mask_steps)
        saved = time.monotonic()
        rows: list[tuple[float, float]] = []
        while self.step < ends[1]:
            started = time.monotonic()
            if self.step == config.steps:
                self.optimiser = self._new_optimiser()
            rows.append(self._step())
            self.step += 1
            now = time.monotonic()
            self.seconds += now - started
            if self.step in ends or now - saved > 60 * config.save_minutes:
                if self.processes.is_main_process:
                    self._save(rows)
                saved, rows = time.monotonic(), []

    def _step(self) -> tuple[float, float]:
        """One step of the optimiser: reconstruction loss and share of kept positions."""
        config, device = self.config, self.processes.device
        masked = self.step >= config.steps
        done, total = (self.step - config.steps, config.mask_steps) if masked else (self.step, config.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * (0.5 + 0.5 * float(np.cos(np.pi * done / total)))
        rng = np.random.default_rng((config.seed, self.step))
        drawn = [self.clips.draw(rng) for _ in range(config.batch)]
        drawn = drawn[self.processes.process_index :: self.processes.num_processes]
        frames, truth = (torch.stack(parts).to(device) for parts in zip(*drawn, strict=True))
        # For Gumbel noise and stochastic depth.
        torch.manual_seed(int(rng.integers(2**62)) + self.processes.process_index)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.bf16):
            loss, kept = losses(self.network, frames, truth, masked=masked)
        self.optimiser.zero_grad()
        (loss + (config.sparsity if masked else 0.0) * kept).backward()  # type: ignore[no-untyped-call]
        if self.processes.num_processes > 1:
            self._average_gradients()
        self.optimiser.step()
        self._average_weights()
        return float(loss.detach()), float(kept.detach())

    def _new_optimiser(self) -> torch.optim.Optimizer:
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        return torch.optim.Adam(parameters, betas=(0.9, 0.99))

    def _average_gradients(self) -> None:
        """Over the processes."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        total = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
        for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))

    @torch.no_grad()
    def _average_weights(self) -> None:
        decay = min(self.config.ema, (self.step + 1) / (self.step + 10))
        pairs = zip(self.averaged.parameters(), self.network.parameters(), strict=True)
        targets, values = zip(*pairs, strict=True)
        torch._foreach_lerp_(targets, values, 1 - decay)

    def _save(self, rows: list[tuple[float, float]]) -> None:
        """Validate, export, write the checkpoint and a row of the log."""
        phase, gate = ("dense", keep_all) if self.step <= self.config.steps else ("masked", threshold_gate)
        scores = validate(self.averaged, self.validation, gate, count=self.config.validation_crops)
        tensors = {name: value.contiguous() for name, value in self.averaged.state_dict().items()}
        save_file(tensors, self.folder / f"{phase}.safetensors", {"steps": str(self.step)})
        loss, kept = np.mean(rows, axis=0)
        row = {
            "step": str(self.step),
            "phase": phase,
            "seconds": f"{self.seconds:.0f}",
            "loss": f"{loss:.5f}",
            "kept_in_training": f"{kept:.3f}",
            **{name: f"{value:.3f}" for name, value in scores.items()},
        }
        with (self.folder / "log.csv").open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if not file.tell():
                writer.writeheader()
            writer.writerow(row)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        state = {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = self.folder / "checkpoint.pt.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "checkpoint.pt")

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]


def losses(network: MIAVSR, frames: Tensor, truth: Tensor, *, masked: bool) -> tuple[Tensor, Tensor]:
    """Reconstruction loss, and the share of kept positions with its gradient.

    Args:
        network: in training mode.
        frames: ``(n, t, 3, h, w)``.
        truth: ``(n, t, 3, 4h, 4w)``.
        masked: whether the second phase has begun.
    """
    gumbel = GumbelGate()
    gate: Gate = gumbel if masked else keep_all
    # The authors' code has this epsilon.
    loss = charbonnier(_inner(network(frames, gate=gate)).float(), _inner(truth), 1e-12)
    return loss, gumbel.sparsity() if masked else loss.new_ones(())


@torch.inference_mode()
def validate(network: MIAVSR, clips: Clips, gate: Gate, *, count: int) -> dict[str, float]:
    """Mean PSNR in dB (RGB) over crops, that of bicubic interpolation, and the share of positions kept."""
    device = network.conv_first.weight.device
    rng = np.random.default_rng(0)
    ratios: list[float] = []
    scores: list[tuple[float, float]] = []
    for _ in range(count):
        frames, truth = (part.to(device) for part in clips.draw(rng))
        seen = KeepRatios(gate)
        pictures = network(frames[None], gate=seen)[0]
        bicubic = F.interpolate(frames, scale_factor=4, mode="bicubic")
        scores.append((_psnr(pictures, truth), _psnr(bicubic, truth)))
        ratios += seen.ratios.values()
    psnr, bicubic_psnr = np.mean(scores, axis=0)
    return {"psnr": float(psnr), "bicubic": float(bicubic_psnr), "kept": float(np.mean(ratios or [1.0]))}


def _psnr(pictures: Tensor, truth: Tensor) -> float:
    return -10 * float(torch.log10(F.mse_loss(_inner(pictures).clamp(0, 1), _inner(truth))))


def _inner(pictures: Tensor) -> Tensor:
    return pictures[..., _BORDER:-_BORDER, _BORDER:-_BORDER]


def load_start(network: MIAVSR, path: Path) -> None:
    """Take trained weights; stages that they lack begin anew.

    Raises:
        UserError: the file cannot be read, or does not fit.
    """
    tensors, _ = weights.read_tensors(path)
    try:
        result = network.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit: {' '.join(str(error).split())}") from None
    missing = [name for name in result.missing_keys if ".layers." not in name]
    if wrong := missing + result.unexpected_keys:
        raise UserError(f"{path} does not fit: {wrong[0]} is in one of them only")


def load_flow(network: MIAVSR, name: str) -> None:
    """Take the flow network of a published BasicVSR checkpoint, by its name in the manifest or its path."""
    tensors, _ = weights.read_tensors(weights.find(name))
    flow = {key.removeprefix("spynet."): value for key, value in tensors.items() if key.startswith("spynet.")}
    network.spynet.load_state_dict(flow)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that build made")
    parser.add_argument("validation", type=Path, help="another one, of photographs that are not trained on")
    parser.add_argument("run", type=Path, help="folder of checkpoint, weights and log")
    parser.add_argument("--start", type=Path, help="weights to start from; stages that they lack begin anew")
    parser.add_argument("--flow", default="BasicVSR_REDS4", help="checkpoint whose flow network to take")
    parser.add_argument("--embed-dim", type=int, default=120)
    parser.add_argument("--depths", type=int, nargs="*", default=[6, 6, 6, 6])
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--mid-channels", type=int, default=64)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--steps", type=int, default=600_000)
    parser.add_argument("--mask-steps", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--sparsity", type=float, default=1e-4)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-minutes", type=float, default=5.0)
    arguments = parser.parse_args()
    if 4 * arguments.crop <= 2 * _BORDER:
        parser.error(f"--crop {arguments.crop} is not possible; allowed: more than {_BORDER // 2}")
    torch.manual_seed(arguments.seed)
    network = MIAVSR(
        arguments.embed_dim, arguments.depths, [arguments.heads] * len(arguments.depths), arguments.mid_channels
    )
    if arguments.start is not None:
        load_start(network, arguments.start)
    else:
        load_flow(network, arguments.flow)
    config = MIATrainConfig(
        steps=arguments.steps,
        mask_steps=arguments.mask_steps,
        sparsity=arguments.sparsity,
        learning_rate=arguments.learning_rate,
        batch=arguments.batch,
        bf16=arguments.bf16,
        seed=arguments.seed,
        save_minutes=arguments.save_minutes,
    )
    clips, validation = (
        Clips(folder, frames=arguments.frames, crop=arguments.crop) for folder in (arguments.data, arguments.validation)
    )
    Trainer(network, config, clips=clips, validation=validation, folder=arguments.run).run()


if __name__ == "__main__":
    main()
