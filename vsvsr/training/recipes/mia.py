"""MIA-VSR: first without masks, then with mask predictors under a sparsity loss.

The defaults are those of the authors, but for the number of steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr import weights
from vsvsr.errors import UserError
from vsvsr.evaluation.metrics import psnr
from vsvsr.models.basicvsr import BasicVSR
from vsvsr.models.basicvsr import load as load_basicvsr
from vsvsr.models.common.loading import write_tensors
from vsvsr.models.common.padding import extend
from vsvsr.models.mia import MIAVSR, KeepRatios, MaskSite, threshold_gate
from vsvsr.models.mia.block import MaskPredictor
from vsvsr.models.mia.checkpoints import own_tensors
from vsvsr.models.mia.gates import TEMPERATURE, Gate
from vsvsr.training.data.clips import Clips, Crops
from vsvsr.training.harness import AveragedWeights, Optimiser, Processes, Row, Schedule, Stateful, train
from vsvsr.training.losses import BORDER, charbonnier, inner
from vsvsr.training.settings import AveragedSettings, CropValidationSettings, Option

_SCALE = 4
_FINAL = 5e-4
"""Share of the learning rate at the end of a phase: 1e-7 of 2e-4."""
_EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class Settings(AveragedSettings, CropValidationSettings):
    """Settings of this recipe; ``steps`` are those of the first phase."""

    steps: int = 600_000
    mask_steps: Annotated[int, Option("batches of the second phase, with masks")] = 100_000
    sparsity: Annotated[float, Option("weight of the share of kept positions in the second phase's loss")] = 1e-4
    handcrafted: Annotated[
        float | None,
        Option(
            "instead of learning masks, keep where normalised features change by this on average over the channels; "
            "the paper's comparison has 0.2"
        ),
    ] = None
    multi_frame: Annotated[
        bool, Option("multi-frame self-attention in all blocks, the paper's comparison; needs --mask-steps 0")
    ] = False
    learning_rate: float = 2e-4
    batch: int = 1
    epsilon: Annotated[
        float,
        Option("added to squared errors under the root of the Charbonnier loss; the paper has 1e-6, the code this"),
    ] = 1e-12
    mirror: Annotated[bool, Option("let sequences come back the way they went: 14 frames of the 7 of Vimeo-90K")] = (
        False
    )
    frames: int = 16
    crop: int = 64
    start: Annotated[Path | None, Option("weights to start from; stages that they lack begin anew")] = None
    flow: Annotated[str, Option("checkpoint whose flow network to take, by name or path")] = "BasicVSR_REDS4"
    teacher: Annotated[
        str | None, Option("BasicVSR checkpoint to be taught by, by name or path; the network starts with its head")
    ] = None
    distillation: Annotated[float, Option("weight of the distance to the teacher's features before the head")] = 1.0
    embed_dim: Annotated[int, Option("channels of the attention")] = 120
    depths: Annotated[tuple[int, ...], Option("blocks of each stage")] = (6, 6, 6, 6)
    heads: Annotated[int, Option("of the attention")] = 6
    mid_channels: Annotated[int, Option("channels after the last pass")] = 64
    window: Annotated[int, Option("height and width of the attention's windows")] = 8


def keep_all(site: MaskSite, logits: Tensor) -> Tensor:
    """The gate of the first phase."""
    return torch.ones_like(logits, dtype=torch.bool)


class GumbelGate:
    """Hard masks of noisy logits with the gradient of the soft ones (eq. 7 and 8), and the share that they keep.

    ``soft = sigmoid((logit + g1 - g2) / (2/3))`` with Gumbel noise g, zero unless ``noisy``; 1 where ``soft >= 0.5``.
    """

    def __init__(self, *, noisy: bool = True) -> None:
        self._kept: list[Tensor] = []
        self._noisy = noisy

    def __call__(self, site: MaskSite, logits: Tensor) -> Tensor:
        if self._noisy:
            noise = [-torch.log(-torch.log(torch.rand_like(logits) + _EPSILON) + _EPSILON) for _ in range(2)]
            logits = logits + noise[0] - noise[1]
        soft = torch.sigmoid(logits / TEMPERATURE)
        mask = (soft >= 0.5).float() - soft.detach() + soft
        self._kept.append(mask.mean())
        return mask

    def sparsity(self) -> Tensor:
        """Mean share of kept positions over modules, frames after the first, and blocks."""
        return torch.stack(self._kept).mean()


class MIA:
    """Both phases, as a recipe for `vsvsr.training.harness.train`.

    The flow network stays as it is: patch alignment rounds the flow to whole pixels, so no gradient reaches it. The
    learning rate falls to a two-thousandth along a cosine in each phase.

    Args:
        network: trained in place.
        settings: of the run.
        training: crops to learn from.
        validation: crops to judge by.
        processes: share each batch.
        teacher: see `losses`.
    """

    best_by = None

    def __init__(
        self,
        network: MIAVSR,
        settings: Settings,
        *,
        training: Crops,
        validation: Crops,
        processes: Processes,
        teacher: BasicVSR | None = None,
    ) -> None:
        processes.check_batch(settings.batch)
        self.settings, self._processes = settings, processes
        self._training, self._validation = training, validation
        self._teacher = teacher if teacher is None else teacher.to(processes.device)
        self.network = network.to(processes.device).to(memory_format=torch.channels_last).train()
        self.network.spynet.requires_grad_(False)
        if settings.handcrafted is not None:
            handcraft(self.network, settings.handcrafted)
        self.averaged = AveragedWeights(self.network, settings.ema)
        self._optimiser = self._new_optimiser()
        self._masked = False

    @property
    def phase(self) -> str:
        return "masked" if self._masked else "dense"

    @property
    def pixels(self) -> int:
        return self.settings.batch * self.settings.frames * self.settings.crop**2

    def step(self, step: int) -> dict[str, float]:
        settings, processes = self.settings, self._processes
        masked = step >= settings.steps
        if step == settings.steps:
            self._optimiser = self._new_optimiser()
        self._masked = masked
        done, total = (step - settings.steps, settings.mask_steps) if masked else (step, settings.steps)
        rng = np.random.default_rng((settings.seed, step))
        batch = self._training.batch(rng, settings.batch, index=processes.index, count=processes.count)
        batch = (batch.mirrored() if settings.mirror else batch).to(processes.device)
        # For Gumbel noise and stochastic depth.
        torch.manual_seed(int(rng.integers(2**62)) + processes.index)
        with torch.autocast(processes.device.type, dtype=torch.bfloat16, enabled=settings.bf16):
            terms = losses(
                self.network,
                batch.frames,
                batch.truth,
                masked=masked,
                noisy=settings.handcrafted is None,
                epsilon=settings.epsilon,
                teacher=self._teacher,
            )
        weights = {"loss": 1.0, "kept_in_training": settings.sparsity, "distillation": settings.distillation}
        total_loss = sum((weights[name] * term for name, term in terms.items()), batch.frames.new_zeros(()))
        if self._optimiser.step(total_loss, Schedule(steps=total, final=_FINAL).share(done)):
            self.averaged.update(step)
        values = {name: float(term.detach()) for name, term in terms.items()}
        return {"learning_rate": self._optimiser.learning_rate, **values}

    def _new_optimiser(self) -> Optimiser:
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        return Optimiser(trained, learning_rate=self.settings.learning_rate, processes=self._processes)

    def validate(self, sample: Path) -> Row:
        gate = threshold_gate if self._masked else keep_all
        scores = validate(self.averaged.network, self._validation, gate, count=self.settings.validation_crops)
        return {"phase": self.phase, **scores}

    def export(self, path: Path, metadata: dict[str, str]) -> None:
        write_tensors(self.averaged.network.state_dict(), path, metadata)

    @property
    def parts(self) -> dict[str, Stateful]:
        return {"network": self.network, "averaged": self.averaged.network, "optimiser": self._optimiser}


def losses(
    network: MIAVSR,
    frames: Tensor,
    truth: Tensor,
    *,
    masked: bool,
    noisy: bool = True,
    epsilon: float = 1e-12,
    teacher: BasicVSR | None = None,
) -> dict[str, Tensor]:
    """Reconstruction (``loss``), the share of kept positions, and the distance to a teacher, each with its gradient.

    Args:
        network: in training mode.
        frames: ``(n, t, 3, h, w)``.
        truth: ``(n, t, 3, 4h, 4w)``.
        masked: whether the second phase has begun.
        noisy: whether masks are drawn, as predictors need it to learn.
        epsilon: of the Charbonnier loss.
        teacher: a BasicVSR whose features before the head the network shall have: the mean of ``|x - x_teacher|``.
    """
    gumbel = GumbelGate(noisy=noisy)
    gate: Gate = gumbel if masked else keep_all
    clip, indices = frames.unbind(1), range(frames.shape[1])
    features = list(network.features(clip, indices, gate=gate))
    pictures = torch.stack([network.reconstruct(x, frame) for x, frame in zip(features, clip, strict=True)], dim=1)
    loss = charbonnier(inner(pictures).float(), inner(truth), epsilon)
    terms = {"loss": loss, "kept_in_training": gumbel.sparsity() if masked else loss.new_ones(())}
    if teacher is not None:
        terms["distillation"] = F.l1_loss(torch.stack(features), _taught(teacher, clip))
    return terms


@torch.no_grad()
def _taught(teacher: BasicVSR, clip: Sequence[Tensor]) -> Tensor:
    """The teacher's features before its head, ``(t, n, c, h, w)``."""
    height, width = clip[0].shape[-2:]
    passes = teacher.passes([extend(frame) for frame in clip], range(len(clip)))
    return torch.stack([teacher.fuse(states)[..., :height, :width] for states in passes])


@torch.inference_mode()
def validate(network: MIAVSR, crops: Crops, gate: Gate, *, count: int) -> dict[str, float]:
    """Mean PSNR in dB (RGB) over crops, that of bicubic interpolation, and the share of positions kept."""
    device = network.conv_first.weight.device
    rng = np.random.default_rng(0)
    ratios: list[float] = []
    scores: list[tuple[float, float]] = []
    for _ in range(count):
        crop = crops.batch(rng, 1).to(device)
        seen = KeepRatios(gate)
        pictures = network(crop.frames, gate=seen)[0]
        bicubic = F.interpolate(crop.frames[0], scale_factor=_SCALE, mode="bicubic")
        scores.append((_psnr(pictures, crop.truth[0]), _psnr(bicubic, crop.truth[0])))
        ratios += seen.ratios.values()
    mean, bicubic_mean = np.mean(scores, axis=0)
    return {"psnr": float(mean), "bicubic": float(bicubic_mean), "kept": float(np.mean(ratios or [1.0]))}


def _psnr(pictures: Tensor, truth: Tensor) -> float:
    """Of a whole clip ``(t, 3, h, w)`` without its borders."""
    result, wanted = (255 * inner(part).clamp(0, 1).flatten(0, 1)[None] for part in (pictures, truth))
    return float(psnr(result, wanted))


def handcraft(network: MIAVSR, threshold: float) -> None:
    """Give the mask predictors, for good, the rule of the paper's comparison: the same for all blocks, not learnt.

    A position is kept where ``mean over channels |norm(x_t) - norm(x_{t-1})| >= threshold``. The network runs and is
    stored as any other.
    """
    for module in network.modules():
        if isinstance(module, MaskPredictor):
            module.requires_grad_(False)
            module.rnn.weight.fill_(1 / module.rnn.in_features)
            module.rnn.bias.fill_(-threshold)


def load_start(network: MIAVSR, path: Path) -> None:
    """Take trained weights; stages that they lack begin anew.

    Raises:
        UserError: the file cannot be read, or does not fit.
    """
    tensors, _ = weights.read_tensors(path)
    try:
        result = network.load_state_dict(own_tensors(tensors), strict=False)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} does not fit: {' '.join(str(error).split())}") from None
    missing = [name for name in result.missing_keys if ".layers." not in name]
    if wrong := missing + result.unexpected_keys:
        raise UserError(f"{path} does not fit: {wrong[0]} is in one of them only")


def load_flow(network: MIAVSR, name: str) -> None:
    """Take the flow network of a published BasicVSR checkpoint.

    Args:
        network: receives it.
        name: of the checkpoint in the manifest, or its path.

    Raises:
        UserError: the file cannot be had, or holds no such network.
    """
    tensors, _ = weights.read_tensors(weights.find(name))
    flow = {key.removeprefix("spynet."): value for key, value in tensors.items() if key.startswith("spynet.")}
    try:
        network.spynet.load_state_dict(flow)
    except RuntimeError as error:
        raise UserError(f"{name} holds no SPyNet: {' '.join(str(error).split())}") from None


def take_head(network: MIAVSR, teacher: BasicVSR) -> None:
    """Start with the teacher's reconstruction head.

    Raises:
        UserError: its features have another width.
    """
    have, wanted = network.conv_before_upsample.out_channels, teacher.fusion.out_channels
    if have != wanted:
        raise UserError(f"--mid-channels {have} is not possible; allowed with this teacher: {wanted}")
    for part in ("upconv1", "upconv2", "conv_hr", "conv_last"):
        network.get_submodule(part).load_state_dict(teacher.get_submodule(part).state_dict())


def run(settings: Settings) -> None:
    """Train."""
    if _SCALE * settings.crop <= 2 * BORDER:
        raise UserError(f"--crop {settings.crop} is not possible; allowed: more than {2 * BORDER // _SCALE}")
    if settings.multi_frame and settings.mask_steps:
        raise UserError(f"--mask-steps {settings.mask_steps} is not possible with --multi-frame; allowed: 0")
    torch.manual_seed(settings.seed)
    heads = [settings.heads] * len(settings.depths)
    window = (3, settings.window, settings.window)
    network = MIAVSR(
        settings.embed_dim,
        settings.depths,
        heads,
        settings.mid_channels,
        window,
        use_mask=not settings.multi_frame,
        multi_frame=settings.multi_frame,
    )
    teacher = None if settings.teacher is None else load_basicvsr(weights.find(settings.teacher)).network
    if settings.start is not None:
        load_start(network, settings.start)
    else:
        load_flow(network, settings.flow)
        if teacher is not None:
            take_head(network, teacher)
    processes = Processes.launched()
    training, validation = (
        Crops(Clips(folder, scale=_SCALE), frames=settings.frames, crop=settings.crop)
        for folder in (settings.data, settings.validation)
    )
    recipe = MIA(network, settings, training=training, validation=validation, processes=processes, teacher=teacher)
    steps = settings.steps + settings.mask_steps
    train(recipe, settings, steps=steps, processes=processes, milestones=[settings.steps])
