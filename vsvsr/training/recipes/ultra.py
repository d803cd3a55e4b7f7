"""UltraVSR: a one-step generator trained with pixel, perceptual, temporal GAN and joint distillation losses.

With ``--base`` it adapts Stable Diffusion 2.1-base: low-rank adapters, first convolution and temporal shift are trained
and exported in the authors' layout. Without, it trains the tiny configuration from nothing: autoencoder, denoiser, then
the generator. What is finished lies in the run folder, and the same command carries on from there.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsvsr.errors import UserError
from vsvsr.evaluation.metrics import psnr
from vsvsr.models.ultra import FULL, TINY, RTSForm, RTSModule, UltraVSR, build, save
from vsvsr.models.ultra.base import encode_prompt, load_base, tokenise
from vsvsr.models.ultra.checkpoints import save_released
from vsvsr.models.ultra.clip_iqa import PAIRS, load_clip_iqa, measure_degradation, sample_indices
from vsvsr.models.ultra.lora import add_adapters, merge_adapters, unet_targets, vae_targets
from vsvsr.models.ultra.network import run_whole, upscale_bicubic
from vsvsr.models.ultra.schedule import STEPS, alphas_cumprod, clamp_degradation, one_step, timestep_of
from vsvsr.training.data.clips import Clips, Crops
from vsvsr.training.harness import Optimiser, Processes, Row, RunFolder, Stateful, minimise, train
from vsvsr.training.losses import Perceptual
from vsvsr.training.settings import CropValidationSettings, Option

_SCALE = 4
_ALONE = Processes(torch.device("cpu"))
"""The parts of the tiny configuration are trained by one process on the CPU."""
_AVOIDED = "blurry, low quality, worst quality, lowres, dirty, messy, over-smooth, jpeg artifacts, watermark, cartoon"

Variant = Literal["A", "B", "C", "D", "E"]


@dataclass(frozen=True, kw_only=True)
class Settings(CropValidationSettings):
    """Settings of this recipe; ``steps`` are those of the generator."""

    autoencoder_steps: Annotated[int, Option("batches for the autoencoder")] = 2500
    denoiser_steps: Annotated[int, Option("batches for the denoiser")] = 2000
    steps: int = 400
    frames: Annotated[int, Option("length of a sequence", at_least=2)] = 6
    crop: int = 32
    learning_rate: float = 1e-3
    degradation: Annotated[float, Option("d of the training clips, 0 (ruined) to 1 (clean)")] = 0.8
    rank: Annotated[int, Option("of the adapters")] = 4
    base: Annotated[
        Path | None, Option("folder of Stable Diffusion 2.1-base to adapt; without, the tiny configuration is trained")
    ] = None
    prompt: Annotated[str, Option("what the clips show, with --base")] = ""
    negative: Annotated[str, Option("what pictures shall not be, for guidance, with --base")] = _AVOIDED
    clip_iqa: Annotated[
        Path | None, Option("CLIP RN50, which measures d of each clip instead of --degradation; needs --base")
    ] = None
    variant: Annotated[
        Variant,
        Option(
            "of the paper's ablation: A adapters at time step 999 with per-frame distillation, B with the degradation "
            "factor, C with the shift's convolutions, D with its attention, E with joint distillation: all"
        ),
    ] = "E"
    rts_form: Annotated[RTSForm, Option("of the temporal shift: as in the authors' code, or as printed")] = "released"
    bf16: Annotated[bool, Option("mixed precision: networks in bfloat16; weights and losses in fp32")] = False
    checkpointing: Annotated[bool, Option("recompute activations in the backward pass: less memory, more time")] = False
    mse: Annotated[float, Option("weight of the pixel loss")] = 1.0
    vgg: Annotated[Path | None, Option("torchvision's vgg19 file, for the perceptual loss; left out without")] = None
    perceptual: Annotated[float, Option("weight of the perceptual loss")] = 2.0
    distillation: Annotated[float, Option("weight of the spatio-temporal joint distillation")] = 1.0
    consistency: Annotated[float, Option("weight of its temporal part")] = 0.5
    gan: Annotated[float, Option("weight of the adversarial loss")] = 0.1
    guidance: Annotated[float, Option("classifier-free guidance of the real regulariser, with a negative prompt")] = 7.5
    discriminator_width: Annotated[int, Option("channels of the discriminator's first layer")] = 16


class TemporalDiscriminator(nn.Module):
    """Temporal patch discriminator: six 3D convolutions 3x5x5 with stride 1x2x2, spectral norm on all but the last.

    Clips ``(n, 3, t, h, w)`` in [-1, 1] to logits ``(n, 4 * width, t', h', w')``; high means real.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = []
        for place in range(5):
            conv = nn.Conv3d(
                widths[place],
                widths[place + 1],
                (3, 5, 5),
                stride=(1, 2, 2),
                padding=(1, 2, 2) if place else 1,
                bias=False,
            )
            layers += [nn.utils.parametrizations.spectral_norm(conv), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv3d(widths[-1], widths[-1], (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2)))
        self.layers = nn.Sequential(*layers)

    def forward(self, clips: Tensor) -> Tensor:
        return self.layers(clips)  # type: ignore[no-any-return]


def distillation_loss(latents: Tensor, real: Tensor, fake: Tensor, consistency: float) -> Tensor:
    """Spatio-temporal joint distillation: a loss whose gradient moves ``latents`` from the fakes to the real clips.

    With ``w = 1 / mean|z - x_real|`` the frames move along ``w (x_fake - x_real)`` and their differences along the
    differences of it. The predictions are clean latents, for which fake minus real is the direction that descends
    (for noise predictions, as the paper prints it, it is real minus fake).

    Args:
        latents: the generator's, ``(t, 4, h, w)``.
        real: clean latents predicted from noised ``latents`` by the regulariser of real clips.
        fake: the same by that of the generator's clips.
        consistency: weight of the differences.
    """
    weight = 1.0 / (latents - real).abs().mean().clamp_min(1e-6)
    gradient = (weight * (fake - real)).detach()
    loss = F.mse_loss(latents, (latents - gradient).detach())
    change, gradient = latents[:-1] - latents[1:], gradient[:-1] - gradient[1:]
    return loss + consistency * F.mse_loss(change, (change - gradient).detach())


def add_noise(latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """``sqrt(alpha_bar) z + sqrt(1 - alpha_bar) noise``."""
    alpha = float(alphas_cumprod()[timestep])
    return math.sqrt(alpha) * latents + math.sqrt(1.0 - alpha) * noise


def predict_clean(noisy: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """The inverse of :func:`add_noise` for estimated noise."""
    return one_step(noisy, noise, math.sqrt(float(alphas_cumprod()[timestep])))


def denoising_loss(network: UltraVSR, latents: Tensor, prompt: Tensor, rng: torch.Generator) -> Tensor:
    """Mean squared error of the noise estimate for one clip ``(t, 4, h, w)`` at a random time step."""
    timestep = int(torch.randint(0, STEPS, (), generator=rng))
    noise = _noise(latents, rng)
    estimate = run_whole(network.unet_steps(timestep, prompt), add_noise(latents, noise, timestep))
    return F.mse_loss(estimate.float(), noise)


def _noise(latents: Tensor, rng: torch.Generator) -> Tensor:
    """Drawn on the CPU, so that it is the same everywhere, and moved to where ``latents`` are."""
    return torch.randn(latents.shape, generator=rng).to(latents.device)


class Ultra:
    """A generator against two temporally regularised UNets and a temporal discriminator, as a recipe.

    Trainable are the generator's adapters, first convolution and temporal shift modules; the real regulariser's
    temporal shift modules; the fake one's adapters and temporal shift modules; the discriminator. In the variants
    before E the regularisers are without temporal shift, in those before C and D the generator is, too.

    Args:
        base: UNet and autoencoder that the generator starts from; becomes the real regulariser.
        settings: of the run.
        training: crops to learn from.
        validation: crops to judge by.
        prompt: text embedding of the clips, ``(1, tokens, width)``.
        negative: text embedding of what the pictures shall not be, for guidance.
        perceptual: perceptual loss, None to go without.
        measure: d of a clip ``(t, 3, h, w)``; None takes that of the settings.
        processes: each takes a clip of its own in every step; gradients are averaged.
    """

    phase = "last"
    best_by = None

    def __init__(
        self,
        base: UltraVSR,
        settings: Settings,
        *,
        training: Crops,
        validation: Crops,
        prompt: Tensor,
        negative: Tensor | None = None,
        perceptual: Perceptual | None = None,
        measure: Callable[[Tensor], float] | None = None,
        processes: Processes = _ALONE,
    ) -> None:
        self.settings, self._processes, self._measure = settings, processes, measure
        device = processes.device
        self.prompt = prompt.to(device)
        self.negative = None if negative is None else negative.to(device)
        self.perceptual = None if perceptual is None else perceptual.to(device)
        self._training, self._validation = training, validation
        base.to(device).requires_grad_(False)
        self.generator, self.fake, self.real = copy.deepcopy(base), copy.deepcopy(base), base
        add_adapters(self.generator.unet, unet_targets(self.generator.unet), settings.rank)
        add_adapters(self.generator.vae, vae_targets(self.generator.vae), settings.rank)
        add_adapters(self.fake.unet, unet_targets(self.fake.unet), settings.rank)
        self.generator.unet.conv_in.base_layer.requires_grad_(True)
        self._joint = settings.variant == "E"
        convolutions, attention = settings.variant in "CDE", settings.variant in "DE"
        for module in self.generator.modules():
            if isinstance(module, RTSModule):
                module.RTSConv.requires_grad_(convolutions)
                module.RTSAtten.requires_grad_(attention)
        for network in (self.fake, self.real):
            network.unet_down_rts.requires_grad_(self._joint)
            network.unet_up_rts.requires_grad_(self._joint)
        self.discriminator = TemporalDiscriminator(settings.discriminator_width)
        self._trained = {
            "generator": self.generator,
            "fake": self.fake,
            "real": self.real,
            "discriminator": self.discriminator,
        }
        if not self._joint:
            del self._trained["real"]
        for module in self._trained.values():
            module.to(device)
            if settings.checkpointing and isinstance(module, UltraVSR):
                module.enable_checkpointing()
        self._optimisers = {
            name: Optimiser(
                [parameter for parameter in module.parameters() if parameter.requires_grad],
                learning_rate=settings.learning_rate,
                processes=processes,
            )
            for name, module in self._trained.items()
        }

    @property
    def pixels(self) -> int:
        return self.settings.frames * self.settings.crop**2

    def step(self, step: int) -> dict[str, float]:
        rng, processes = np.random.default_rng((self.settings.seed, step)), self._processes
        batch = self._training.batch(rng, processes.count, index=processes.index, count=processes.count)
        batch = batch.to(processes.device)
        noise = torch.Generator().manual_seed(1_000_003 * self.settings.seed + step + 7_919 * processes.index)
        return self.update(batch.frames[0], batch.truth[0], noise)

    def degradation_of(self, frames: Tensor) -> float:
        """d of a clip ``(t, 3, h, w)``: measured, or the settings'; of the last time step in variant A."""
        if self.settings.variant == "A":
            return clamp_degradation(0.0)
        return clamp_degradation(self.settings.degradation if self._measure is None else self._measure(frames))

    def generate(self, frames: Tensor) -> Tensor:
        """Pictures in [-1, 1] of a clip ``(t, 3, h, w)`` in [0, 1]; sides multiples of 2."""
        degradation = self.degradation_of(frames)
        with self._precision():
            latents = self.generator.encode(upscale_bicubic(frames))
            noise = run_whole(self.generator.unet_steps(timestep_of(degradation), self.prompt), latents)
            pictures = run_whole(self.generator.decoder_steps(), one_step(latents, noise, degradation))
        return pictures.float()

    def losses(self, frames: Tensor, truth: Tensor, rng: torch.Generator) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The generator's losses, unweighted, its pictures in [-1, 1], and their latents.

        The distillation sees the latents of the pictures, encoded again by the base model's own encoder: its gradient
        reaches everything that made them, the decoder's temporal shift too.

        Args:
            frames: a clip ``(t, 3, h, w)``, RGB in [0, 1].
            truth: ``(t, 3, 4h, 4w)``.
            rng: of noise and time steps.
        """
        pictures = self.generate(frames)
        latents = self._encoded((pictures + 1.0) / 2.0)
        losses = {
            "mse": F.mse_loss(pictures, truth * 2.0 - 1.0),
            "distillation": self._distillation(latents, rng),
            "gan": -self.discriminator(_as_clip(pictures)).mean(),
        }
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual((pictures + 1.0) / 2.0, truth)
        return losses, pictures, latents

    def update(self, frames: Tensor, truth: Tensor, rng: torch.Generator) -> dict[str, float]:
        """One update of all networks; arguments are those of `losses`.

        Returns:
            The losses by name, unweighted; ``loss`` is the generator's weighted sum.
        """
        losses, pictures, latents = self.losses(frames, truth, rng)
        weighted = sum((getattr(self.settings, name) * loss for name, loss in losses.items()), pictures.new_zeros(()))
        self._optimisers["generator"].step(weighted)
        losses["discriminator"] = self._judgement(pictures, truth)
        self._optimisers["discriminator"].step(losses["discriminator"])
        losses["fake"] = self._denoising(self.fake, latents.detach(), rng)
        self._optimisers["fake"].step(losses["fake"])
        if self._joint:
            with torch.no_grad():
                clean = self._encoded(truth)
            losses["real"] = self._denoising(self.real, clean, rng)
            self._optimisers["real"].step(losses["real"])
        return {"loss": float(weighted.detach()), **{name: float(loss.detach()) for name, loss in losses.items()}}

    def _judgement(self, pictures: Tensor, truth: Tensor) -> Tensor:
        """The discriminator's loss: hinges at 1 for real clips and at -1 for the generator's."""
        real, fake = _as_clip(truth * 2.0 - 1.0), _as_clip(pictures.detach())
        return F.relu(1.0 - self.discriminator(real)).mean() + F.relu(1.0 + self.discriminator(fake)).mean()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._processes.device.type, dtype=torch.bfloat16, enabled=self.settings.bf16)

    def _encoded(self, pictures: Tensor) -> Tensor:
        """Latents of pictures in [0, 1] by the base model's encoder."""
        with self._precision():
            return self.real.encode(pictures).float()

    def _denoising(self, network: UltraVSR, latents: Tensor, rng: torch.Generator) -> Tensor:
        with self._precision():
            return denoising_loss(network, latents, self.prompt, rng)

    def _distillation(self, latents: Tensor, rng: torch.Generator) -> Tensor:
        timestep = int(torch.randint(20, STEPS - 20, (), generator=rng))
        with torch.no_grad():
            noisy = add_noise(latents, _noise(latents, rng), timestep)
            real = self._estimate(self.real, noisy, timestep, self.prompt)
            if self.negative is not None:
                avoided = self._estimate(self.real, noisy, timestep, self.negative)
                real = avoided + self.settings.guidance * (real - avoided)
            fake = self._estimate(self.fake, noisy, timestep, self.prompt)
        clean_real, clean_fake = (predict_clean(noisy, noise, timestep) for noise in (real, fake))
        consistency = self.settings.consistency if self._joint else 0.0
        return distillation_loss(latents, clean_real, clean_fake, consistency)

    def _estimate(self, network: UltraVSR, noisy: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        with self._precision():
            return run_whole(network.unet_steps(timestep, prompt), noisy).float()

    def validate(self, sample: Path) -> Row:
        return {**validate(self, self._validation, self.settings.validation_crops)}

    def export(self, path: Path, metadata: dict[str, str]) -> None:
        if self.settings.base is not None:
            save_released(self.generator, path, metadata)
            return
        scaling = self.generator.vae.config.scaling_factor
        config = replace(TINY, vae={**TINY.vae, "scaling_factor": scaling}, degradation=self.settings.degradation)
        config = replace(config, rts_form=self.settings.rts_form)
        save(self.finished(), config, path, metadata)

    @property
    def parts(self) -> dict[str, Stateful]:
        optimisers = {f"{name} optimiser": optimiser for name, optimiser in self._optimisers.items()}
        return {**self._trained, **optimisers}

    def finished(self) -> UltraVSR:
        """A copy of the generator for inference, adapters merged."""
        network = copy.deepcopy(self.generator)
        merge_adapters(network.unet)
        merge_adapters(network.vae)
        return network.eval().requires_grad_(False)


def _as_clip(frames: Tensor) -> Tensor:
    """``(t, c, h, w)`` to ``(1, c, t, h, w)``."""
    return frames.transpose(0, 1)[None]


def train_autoencoder(network: UltraVSR, crops: Crops, *, steps: int, learning_rate: float = 2e-3) -> list[float]:
    """Train the autoencoder of a network of our own on clean frames, L1; its latents get unit variance by scaling."""
    rng = np.random.default_rng(1)

    def loss() -> Tensor:
        truth = crops.batch(rng, 1).truth[0]
        latents = network.encode(truth)
        # Keeps the scale of the latents from drifting.
        decay = 1e-3 * latents.square().mean()
        return F.l1_loss(run_whole(network.decoder_steps(), latents), truth * 2.0 - 1.0) + decay

    losses = minimise(network.vae.parameters(), loss, steps=steps, learning_rate=learning_rate)
    with torch.no_grad():
        deviation = torch.cat([network.encode(crops.batch(rng, 1).truth[0]) for _ in range(8)]).std()
    network.vae.register_to_config(scaling_factor=float(network.vae.config.scaling_factor / deviation))
    return losses


def train_denoiser(
    network: UltraVSR, crops: Crops, prompt: Tensor, *, steps: int, learning_rate: float = 2e-3
) -> list[float]:
    """Train UNet and temporal shift of a network of our own to denoise the latents of clean clips."""
    rng, noise = np.random.default_rng(2), torch.Generator().manual_seed(2)
    with torch.no_grad():
        latents = [network.encode(crops.batch(rng, 1).truth[0]) for _ in range(min(steps, 200))]

    def loss() -> Tensor:
        return denoising_loss(network, latents[int(rng.integers(len(latents)))], prompt, noise)

    parts = (network.unet, network.unet_down_rts, network.unet_up_rts)
    parameters = [parameter for part in parts for parameter in part.parameters()]
    return minimise(parameters, loss, steps=steps, learning_rate=learning_rate)


@torch.no_grad()
def validate(recipe: Ultra, crops: Crops, count: int) -> dict[str, float]:
    """Means over crops of the pictures before the colour fix.

    Returns:
        PSNR in dB of pictures and of bicubic enlargement (``psnr``, ``psnr_bicubic``), mean frame-to-frame difference
        of pictures, bicubic enlargement and truth (``change``, ``change_bicubic``, ``change_truth``), and the mean
        frame-to-frame change of the error (``flicker``, ``flicker_bicubic``).
    """
    rng = np.random.default_rng(3)
    rows = []
    for _ in range(count):
        crop = crops.batch(rng, 1).to(recipe.prompt.device)
        frames, truth = crop.frames[0], crop.truth[0]
        pictures, bicubic = (
            enlarged.clamp(0.0, 1.0) for enlarged in ((recipe.generate(frames) + 1.0) / 2.0, upscale_bicubic(frames))
        )
        row = {"change_truth": _change(truth)}
        for suffix, clip in (("", pictures), ("_bicubic", bicubic)):
            row["psnr" + suffix] = float(psnr(*(255 * part.flatten(0, 1)[None] for part in (clip, truth))))
            row["change" + suffix] = _change(clip)
            row["flicker" + suffix] = _change(clip - truth)
        rows.append(row)
    return {name: float(np.mean([row[name] for row in rows])) for name in sorted(rows[0])}


def _change(clip: Tensor) -> float:
    return float(clip.diff(dim=0).abs().mean())


def _prepare(base: UltraVSR, folder: RunFolder, stages: Mapping[str, Callable[[], list[float]]]) -> None:
    """Run the stages that the folder does not have yet, one after the other, on ``base``."""
    for name, stage in stages.items():
        state = folder.load(_ALONE.device, name)
        if state is not None:
            base.load_state_dict(state["network"])
            base.vae.register_to_config(scaling_factor=state["scaling_factor"])
            continue
        begin = time.monotonic()
        losses = stage()
        folder.save({"network": base.state_dict(), "scaling_factor": base.vae.config.scaling_factor}, name)
        tenth = max(len(losses) // 10, 1)
        change = f"{np.mean(losses[:tenth]):.4f} to {np.mean(losses[-tenth:]):.4f}"
        print(f"{name}: {len(losses)} steps in {time.monotonic() - begin:.0f} s, loss {change}", flush=True)


def run(settings: Settings) -> None:
    """Train."""
    processes = Processes.launched()
    training = Crops(Clips(settings.data, scale=_SCALE), frames=settings.frames, crop=settings.crop)
    validation = Crops(
        Clips(settings.validation, scale=_SCALE), frames=min(settings.frames, 8), crop=min(settings.crop, 32)
    )
    perceptual = None if settings.vgg is None else Perceptual(settings.vgg)
    torch.manual_seed(settings.seed)
    start = _tiny if settings.base is None else _adapted
    base, prompt, negative, measure = start(settings, training, processes)
    torch.manual_seed(settings.seed)
    recipe = Ultra(
        base,
        settings,
        training=training,
        validation=validation,
        prompt=prompt,
        negative=negative,
        perceptual=perceptual,
        measure=measure,
        processes=processes,
    )
    train(recipe, settings, steps=settings.steps, processes=processes)


Start = tuple[UltraVSR, Tensor, Tensor | None, Callable[[Tensor], float] | None]
"""Base model, text embedding of the clips, that of what they shall not be, and what measures d of a clip."""


def _adapted(settings: Settings, training: Crops, processes: Processes) -> Start:
    """Stable Diffusion with fresh temporal shift."""
    folder = settings.base
    assert folder is not None
    unet, vae = load_base(folder)
    base = UltraVSR(unet, vae, replace(FULL, rts_form=settings.rts_form))
    prompt, negative = encode_prompt(folder, settings.prompt), encode_prompt(folder, settings.negative)
    if settings.clip_iqa is None:
        return base, prompt, negative, None
    tokens = tokenise(folder, [text for pair in PAIRS for text in pair]).to(processes.device)
    judge = load_clip_iqa(settings.clip_iqa).to(processes.device)

    def measure(frames: Tensor) -> float:
        return measure_degradation(judge, tokens, [frames[i] for i in sample_indices(len(frames))])

    return base, prompt, negative, measure


def _tiny(settings: Settings, training: Crops, processes: Processes) -> Start:
    """The tiny configuration, whose parts are trained first."""
    if processes.count > 1:
        raise UserError("the tiny configuration of ultra trains on one process; start it without accelerate launch")
    if settings.clip_iqa is not None:
        raise UserError("--clip-iqa is not possible without --base, whose tokenizer it needs")
    prompt = torch.zeros(1, 77, int(TINY.unet["cross_attention_dim"]))
    base = build(replace(TINY, rts_form=settings.rts_form))
    stages = {
        "autoencoder": lambda: train_autoencoder(base, training, steps=settings.autoencoder_steps),
        "denoiser": lambda: train_denoiser(base, training, prompt, steps=settings.denoiser_steps),
    }
    _prepare(base, RunFolder(settings.run), stages)
    return base, prompt, None, None
