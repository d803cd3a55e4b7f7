"""The compact size's flow estimator, on degraded clips whose motion is known."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsvsr.errors import UserError
from vsvsr.models.common.loading import write_tensors
from vsvsr.models.fastreal.flow import LightFlow
from vsvsr.training.data.clips import MOTION, Clips, Crops
from vsvsr.training.harness import Optimiser, Processes, Row, Schedule, Stateful, train
from vsvsr.training.settings import BatchSettings, Option


@dataclass(frozen=True, kw_only=True)
class Settings(BatchSettings):
    """Settings of this recipe."""

    steps: int = 6000
    batch: int = 8
    frames: Annotated[int, Option("length of a sequence", at_least=2)] = 2
    crop: int = 64
    learning_rate: float = 2e-3
    scale: Annotated[Literal[2, 4], Option("of the clips; the flow does not depend on it")] = 4


def _loss(network: LightFlow, reference: Tensor, support: Tensor, truth: Tensor) -> Tensor:
    """End-point error of every level in pixels of the frame, the finest counting most."""
    total = truth.new_zeros(())
    for flow in network.pyramid(reference, support):
        step = truth.shape[-1] // flow.shape[-1]
        error = (F.avg_pool2d(truth, step) - flow * step).square().sum(1)
        total = 0.4 * total + (error + 1e-4).sqrt().mean()
    return total


@torch.inference_mode()
def end_point_error(network: nn.Module, clips: Clips, device: torch.device) -> tuple[float, float]:
    """Mean length of the flow's error and of the flow itself, in low-resolution pixels."""
    errors, lengths = [], []
    for index in range(len(clips)):
        clip = clips.whole(index).to(device)
        frames, truth = clip.frames[0], clip.flows[0]
        errors.append(float((network(frames[1:], frames[:-1]) - truth).norm(dim=1).mean()))
        lengths.append(float(truth.norm(dim=1).mean()))
    return float(np.mean(errors)), float(np.mean(lengths))


class FlowTraining:
    """A `LightFlow`, as a recipe for `vsvsr.training.harness.train`.

    Args:
        settings: of the run.
        training: crops with their motion.
        validation: clips with their motion.
        processes: share each batch.
    """

    phase = "last"
    best_by = None

    def __init__(self, settings: Settings, *, training: Crops, validation: Clips, processes: Processes) -> None:
        processes.check_batch(settings.batch)
        torch.manual_seed(settings.seed)
        self.network = LightFlow().to(processes.device).to(memory_format=torch.channels_last)
        self._settings, self._processes = settings, processes
        self._training, self._validation = training, validation
        self._optimiser = Optimiser(
            self.network.parameters(), learning_rate=settings.learning_rate, processes=processes, clip=1.0
        )
        self._schedule = Schedule(steps=settings.steps, warmup=max(settings.steps // 10, 1))

    @property
    def pixels(self) -> int:
        return self._settings.batch * self._settings.frames * self._settings.crop**2

    def step(self, step: int) -> dict[str, float]:
        rng = np.random.default_rng((self._settings.seed, step))
        processes = self._processes
        batch = self._training.batch(rng, self._settings.batch, index=processes.index, count=processes.count)
        batch = batch.to(processes.device)
        frames, before = (batch.frames[:, stretch].flatten(0, 1) for stretch in (slice(1, None), slice(0, -1)))
        loss = _loss(self.network, frames, before, batch.flows.flatten(0, 1))
        self._optimiser.step(loss, self._schedule.share(step))
        return {"loss": float(loss.detach()), "learning_rate": self._optimiser.learning_rate}

    def validate(self, sample: Path) -> Row:
        error, length = end_point_error(self.network, self._validation, self._processes.device)
        return {"end_point_error": error, "motion": length}

    def export(self, path: Path, metadata: dict[str, str]) -> None:
        write_tensors(self.network.state_dict(), path, metadata)

    @property
    def parts(self) -> dict[str, Stateful]:
        return {"network": self.network, "optimiser": self._optimiser}


def run(settings: Settings) -> None:
    """Train."""
    multiple = 2 ** (LightFlow().levels - 1)
    if settings.crop % multiple:
        raise UserError(f"--crop {settings.crop} is not possible; allowed: multiples of {multiple}")
    processes = Processes.launched()
    training, validation = (
        Clips(folder, scale=settings.scale, flow=MOTION) for folder in (settings.data, settings.validation)
    )
    crops = Crops(training, frames=settings.frames, crop=settings.crop)
    recipe = FlowTraining(settings, training=crops, validation=validation, processes=processes)
    train(recipe, settings, steps=settings.steps, processes=processes)
