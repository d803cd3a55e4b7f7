"""Trains the compact size's flow estimator on degraded clips whose motion is known."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from vsvsr.errors import UserError
from vsvsr.models.fastreal.flow import LightFlow

_BATCH, _CROP = 8, 64


def _folders(data: Path) -> list[Path]:
    folders = sorted(path.parent for path in data.glob("*/motion.npy") if (path.parent / "clip.json").exists())
    if not folders:
        raise UserError(f"no clips with known motion in {data}; make some with: python -m vsvsr.training build")
    return folders


def _pair(folder: Path, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A random crop of two neighbouring frames ``(3, h, w)`` and the flow between them ``(2, h, w)``."""
    frames = np.load(folder / "lr.npy", mmap_mode="r")
    motion = np.load(folder / "motion.npy", mmap_mode="r")
    t = int(rng.integers(len(motion)))
    top, left = (int(rng.integers(0, side - _CROP + 1)) for side in frames.shape[1:3])
    window = (slice(top, top + _CROP), slice(left, left + _CROP))
    pair = torch.from_numpy(np.array(frames[(slice(t, t + 2), *window)])).permute(0, 3, 1, 2).float() / 255
    flow = torch.from_numpy(np.array(motion[(t, slice(None), *window)])).float()
    if rng.random() < 0.5:
        pair, flow = pair.flip(-1), flow.flip(-1) * torch.tensor((-1.0, 1.0)).view(2, 1, 1)
    if rng.random() < 0.5:
        pair, flow = pair.flip(-2), flow.flip(-2) * torch.tensor((1.0, -1.0)).view(2, 1, 1)
    if rng.random() < 0.5:
        pair, flow = pair.mT, flow.mT.flip(0)
    return pair[1], pair[0], flow


def _loss(network: LightFlow, reference: Tensor, support: Tensor, truth: Tensor) -> Tensor:
    """End-point error of every level in pixels of the frame, the finest counting most."""
    total = truth.new_zeros(())
    for flow in network.pyramid(reference, support):
        step = truth.shape[-1] // flow.shape[-1]
        error = (F.avg_pool2d(truth, step) - flow * step).square().sum(1)
        total = 0.4 * total + (error + 1e-4).sqrt().mean()
    return total


@torch.inference_mode()
def end_point_error(network: torch.nn.Module, data: Path) -> tuple[float, float]:
    """Mean length of the flow's error and of the flow itself, in low-resolution pixels."""
    errors, lengths = [], []
    for folder in _folders(data):
        frames = torch.from_numpy(np.load(folder / "lr.npy")).permute(0, 3, 1, 2) / 255
        truth = torch.from_numpy(np.load(folder / "motion.npy")).float()
        errors.append(float((network(frames[1:], frames[:-1]) - truth).norm(dim=1).mean()))
        lengths.append(float(truth.norm(dim=1).mean()))
    return float(np.mean(errors)), float(np.mean(lengths))


def train_flow(data: Path, validation: Path, target: Path, *, steps: int, seed: int) -> None:
    """Train `LightFlow` and write its weights to ``target``."""
    torch.manual_seed(seed)
    folders = _folders(data)
    network = LightFlow().to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        rng = np.random.default_rng((seed, step))
        items = [_pair(folders[int(rng.integers(len(folders)))], rng) for _ in range(_BATCH)]
        loss = _loss(network, *(torch.stack(parts) for parts in zip(*items, strict=True)))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            error, length = end_point_error(network, validation)
            print(f"step {step + 1}, end-point error {error:.3f} of {length:.3f} pixels", flush=True)
            save_file({name: value.contiguous() for name, value in network.state_dict().items()}, target)
