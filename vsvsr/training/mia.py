"""MIA-VSR: first without masks, then with mask predictors under a sparsity loss.

``python -m vsvsr.training.mia DATA VALIDATION RUN`` trains on the clips of ``python -m vsvsr.training build``.
"""

import argparse
import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from vsvsr import weights
from vsvsr.models.mia import MIAVSR, KeepRatios, MaskSite, threshold_gate
from vsvsr.models.mia.gates import TEMPERATURE, Gate
from vsvsr.training.dataset import Clips

_EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class MIATrainConfig:
    """Settings; the defaults are those of the authors, but for the number of steps.

    Attributes:
        steps: of the first phase, every position computed.
        mask_steps: of the second phase, with masks.
        sparsity: weight of the share of kept positions in the loss of the second phase (lambda).
        learning_rate: falls to zero along a cosine in each phase.
        flow_steps: steps of the first phase during which the flow network stays as it is; then it learns at an eighth
            of the rate.
        batch: clips at once.
        seed: of everything random.
    """

    steps: int
    mask_steps: int
    sparsity: float = 1e-4
    learning_rate: float = 2e-4
    flow_steps: int = 5000
    batch: int = 1
    seed: int = 0


def charbonnier(prediction: Tensor, truth: Tensor) -> Tensor:
    """``mean(sqrt(d^2 + 1e-12))``, as the authors' code has it."""
    return ((prediction - truth).square() + 1e-12).sqrt().mean()


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


def train_step(
    network: MIAVSR, optimiser: torch.optim.Optimizer, frames: Tensor, truth: Tensor, *, sparsity: float | None
) -> tuple[float, float]:
    """One step of the optimiser.

    Args:
        network: trained in place.
        optimiser: over its parameters.
        frames: ``(n, t, 3, h, w)``.
        truth: ``(n, t, 3, 4h, 4w)``.
        sparsity: weight of the mask loss; None in the first phase.

    Returns:
        Reconstruction loss, and the share of kept positions.
    """
    gumbel = GumbelGate()
    gate: Gate = keep_all if sparsity is None else gumbel
    loss = charbonnier(network(frames, gate=gate), truth)
    kept = loss.new_ones(()) if sparsity is None else gumbel.sparsity()
    optimiser.zero_grad()
    (loss + (sparsity or 0.0) * kept).backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return float(loss.detach()), float(kept.detach())


def fit(network: MIAVSR, config: MIATrainConfig, clips: Clips, validation: Clips, folder: Path) -> None:
    """Both phases; writes ``log.csv`` and the weights after each phase (``dense``, ``masked``) to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    for phase, steps in (("dense", config.steps), ("masked", config.mask_steps)):
        masked = phase == "masked"
        optimiser = torch.optim.Adam(_groups(network, config.learning_rate), betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
        started, history = time.monotonic(), []
        network.train()
        for step in range(steps):
            network.spynet.requires_grad_(step >= config.flow_steps or (masked and config.steps >= config.flow_steps))
            drawn = [clips.draw(rng) for _ in range(config.batch)]
            frames, truth = (torch.stack(parts) for parts in zip(*drawn, strict=True))
            sparsity = config.sparsity if masked else None
            history.append(train_step(network, optimiser, frames, truth, sparsity=sparsity))
            schedule.step()
        loss, kept = np.mean(history[-20:], axis=0) if history else (float("nan"), 1.0)
        scores = validate(network, validation, threshold_gate if masked else keep_all)
        row = [phase, steps, f"{time.monotonic() - started:.0f}", f"{loss:.5f}", f"{kept:.3f}"]
        row += [f"{value:.3f}" for value in scores.values()]
        with (folder / "log.csv").open("a", newline="") as file:
            csv.writer(file).writerow(row)
        print(f"{phase}: {steps} steps, loss {loss:.5f}, kept in training {kept:.3f};", scores, flush=True)
        tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
        save_file(tensors, folder / f"{phase}.safetensors")


@torch.inference_mode()
def validate(network: MIAVSR, clips: Clips, gate: Gate, *, count: int = 6) -> dict[str, float]:
    """Mean PSNR in dB (RGB) over crops, that of bicubic interpolation, and the share of positions kept."""
    network.eval()
    rng = np.random.default_rng(0)
    ratios: list[float] = []
    scores: list[tuple[float, float]] = []
    for _ in range(count):
        frames, truth = clips.draw(rng)
        seen = KeepRatios(gate)
        pictures = network(frames[None], gate=seen)[0]
        bicubic = F.interpolate(frames, scale_factor=4, mode="bicubic")
        scores.append((_psnr(pictures, truth), _psnr(bicubic, truth)))
        ratios += seen.ratios.values()
    psnr, bicubic_psnr = np.mean(scores, axis=0)
    return {"psnr": float(psnr), "bicubic": float(bicubic_psnr), "kept": float(np.mean(ratios))}


def _psnr(pictures: Tensor, truth: Tensor) -> float:
    return -10 * float(torch.log10(F.mse_loss(pictures.clamp(0, 1), truth)))


def _groups(network: MIAVSR, rate: float) -> list[dict[str, Any]]:
    """Parameters with their rates: the flow network learns at an eighth."""
    flow = list(network.spynet.parameters())
    known = {id(parameter) for parameter in flow}
    others = [parameter for parameter in network.parameters() if id(parameter) not in known]
    return [{"params": others, "lr": rate}, {"params": flow, "lr": rate / 8}]


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
    parser.add_argument("run", type=Path, help="folder of weights and log")
    parser.add_argument("--start", type=Path, help="weights to start from")
    parser.add_argument("--flow", default="BasicVSR_REDS4", help="checkpoint whose flow network to take")
    parser.add_argument("--embed-dim", type=int, default=120)
    parser.add_argument("--depths", type=int, nargs="+", default=[6, 6, 6, 6])
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--mid-channels", type=int, default=64)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--steps", type=int, default=600_000)
    parser.add_argument("--mask-steps", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--sparsity", type=float, default=1e-4)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--flow-steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    network = MIAVSR(
        arguments.embed_dim, arguments.depths, [arguments.heads] * len(arguments.depths), arguments.mid_channels
    )
    if arguments.start is not None:
        network.load_state_dict(weights.read_tensors(arguments.start)[0])
    else:
        load_flow(network, arguments.flow)
    config = MIATrainConfig(
        steps=arguments.steps,
        mask_steps=arguments.mask_steps,
        sparsity=arguments.sparsity,
        learning_rate=arguments.learning_rate,
        flow_steps=arguments.flow_steps,
        batch=arguments.batch,
        seed=arguments.seed,
    )
    clips, validation = (
        Clips(folder, frames=arguments.frames, crop=arguments.crop) for folder in (arguments.data, arguments.validation)
    )
    fit(network, config, clips, validation, arguments.run)


if __name__ == "__main__":
    main()
