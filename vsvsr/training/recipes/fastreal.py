"""FastRealVSR with a pixel loss: stage 1 of the paper."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from vsvsr import weights
from vsvsr.errors import UserError
from vsvsr.models.fastreal import COMPACT, FastRealConfig, FastRealVSR
from vsvsr.training.harness import Processes, train
from vsvsr.training.losses import charbonnier, psnr_loss, temporal_consistency
from vsvsr.training.recurrent import Chunk, RecurrentSettings, RecurrentTraining, continued, open_clips
from vsvsr.training.settings import Option


@dataclass(frozen=True, kw_only=True)
class Settings(RecurrentSettings):
    """Settings of this recipe."""

    size: Annotated[Literal["compact", "full"], Option("of new weights")] = "compact"
    scale: Annotated[Literal[2, 4] | None, Option("of new weights 4, otherwise that of --start")] = None
    flow: Annotated[str | None, Option("weights of the flow estimator; for --size full BasicVSR_REDS4's")] = None
    start: Annotated[Path | None, Option("trained weights to start from")] = None
    loss: Annotated[Literal["charbonnier", "psnr"], Option("of the pixels")] = "charbonnier"
    temporal_consistency: Annotated[float, Option("weight of the same loss on flicker")] = 0.0


def losses(chunk: Chunk, settings: Settings) -> dict[str, Tensor]:
    """Of the pixels, and of the changes of their errors from frame to frame."""
    pixel_loss = psnr_loss if settings.loss == "psnr" else charbonnier
    result = {"pixel": pixel_loss(chunk.pictures, chunk.truth)}
    if settings.temporal_consistency and chunk.pictures.shape[1] > 1:
        flicker = temporal_consistency(chunk.pictures, chunk.truth, chunk.flows, pixel_loss)
        result["temporal_consistency"] = settings.temporal_consistency * flicker
    return result


def network(settings: Settings) -> FastRealVSR:
    """A new network with the given flow estimator, or the one to carry on from."""
    torch.manual_seed(settings.seed)
    if settings.start is not None:
        result = continued(settings.start, scale=settings.scale, hsa=settings.hsa)
    else:
        base = COMPACT if settings.size == "compact" else FastRealConfig()
        result = FastRealVSR(replace(base, scale=settings.scale or base.scale, hsa=settings.hsa or base.hsa))
    if settings.flow is not None:
        tensors, _ = weights.read_tensors(weights.find(settings.flow))
        spynet = {name.removeprefix("spynet."): value for name, value in tensors.items() if name.startswith("spynet.")}
        try:
            result.flow_estimator.load_state_dict(spynet or tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{settings.flow} does not hold this network's flow estimator: {reason}") from None
    elif settings.start is None:
        raise UserError("a new network needs a trained flow estimator; give --flow FILE or --start FILE")
    return result


def run(settings: Settings) -> None:
    """Train."""
    processes = Processes.launched()
    started = network(settings).to(processes.device)
    training, validation = open_clips(started, settings, processes)
    recipe = RecurrentTraining(
        started,
        settings,
        lambda chunk: losses(chunk, settings),
        training=training,
        validation=validation,
        processes=processes,
    )
    train(recipe, settings, steps=settings.steps, processes=processes)
