"""UltraVSR: a one-step generator trained with pixel, perceptual, temporal GAN and joint distillation losses.

``python -m vsvsr.training.recipes.ultra DATA VALIDATION RUN`` trains the tiny configuration from nothing on the clips
of ``python -m vsvsr.training build``: autoencoder, denoiser, then the generator. What is finished lies in ``RUN``, and
the same command carries on from there.
"""

import argparse
import copy
import csv
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsvsr.models.ultra import TINY, UltraVSR, build
from vsvsr.models.ultra.files import save_compact
from vsvsr.models.ultra.lora import add_adapters, merge_adapters, unet_targets, vae_targets
from vsvsr.models.ultra.network import run_whole, upscale_bicubic
from vsvsr.models.ultra.schedule import STEPS, alphas_cumprod, clamp_degradation, one_step, timestep_of
from vsvsr.training.data.clips import Clips
from vsvsr.training.losses import Perceptual


@dataclass(frozen=True, kw_only=True)
class UltraTrainConfig:
    """Settings of the generator's training.

    Attributes:
        degradation: d of the training clips.
        rank: of the adapters.
        learning_rate: of every optimiser.
        mse: weight of the pixel loss.
        perceptual: weight of the perceptual loss.
        distillation: weight of the spatio-temporal joint distillation.
        consistency: weight of its temporal part.
        gan: weight of the temporal critic's opinion.
        guidance: classifier-free guidance of the real regulariser, where a negative prompt is given.
        critic_width: channels of the critic's first layer.
    """

    degradation: float = 0.5
    rank: int = 4
    learning_rate: float = 5e-5
    mse: float = 1.0
    perceptual: float = 2.0
    distillation: float = 1.0
    consistency: float = 0.5
    gan: float = 0.1
    guidance: float = 7.5
    critic_width: int = 64


class TemporalCritic(nn.Module):
    """Temporal patch critic: six 3D convolutions 3x5x5 with stride 1x2x2, spectral norm on all but the last.

    Clips ``(n, 3, t, h, w)`` in [-1, 1] to opinions ``(n, 4 * width, t', h', w')``; high means real.
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
    noise = torch.randn(latents.shape, generator=rng)
    estimate = run_whole(network.unet_steps(timestep, prompt), add_noise(latents, noise, timestep))
    return F.mse_loss(estimate, noise)


class UltraTrainer:
    """Trains a generator against two temporally regularised UNets and a temporal critic.

    Trainable are the generator's adapters, first convolution and temporal shift modules; the real regulariser's
    temporal shift modules; the fake one's adapters and temporal shift modules; the critic.

    Args:
        base: UNet and autoencoder that the generator starts from; becomes the real regulariser.
        config: settings.
        prompt: text embedding of the clips, ``(1, tokens, width)``.
        negative: text embedding of what the pictures shall not be, for guidance.
        perceptual: perceptual loss, None to go without.
    """

    def __init__(
        self,
        base: UltraVSR,
        config: UltraTrainConfig,
        *,
        prompt: Tensor,
        negative: Tensor | None = None,
        perceptual: Perceptual | None = None,
    ) -> None:
        self.config, self.prompt, self.negative, self.perceptual = config, prompt, negative, perceptual
        self.degradation = clamp_degradation(config.degradation)
        base.requires_grad_(False)
        self.generator, self.fake, self.real = copy.deepcopy(base), copy.deepcopy(base), base
        add_adapters(self.generator.unet, unet_targets(self.generator.unet), config.rank)
        add_adapters(self.generator.vae, vae_targets(self.generator.vae), config.rank)
        add_adapters(self.fake.unet, unet_targets(self.fake.unet), config.rank)
        self.generator.unet.conv_in.base_layer.requires_grad_(True)
        for network in (self.generator, self.fake, self.real):
            network.unet_down_rts.requires_grad_(True)
            network.unet_up_rts.requires_grad_(True)
        self.generator.decoder_up_rts.requires_grad_(True)
        self.critic = TemporalCritic(config.critic_width)
        self._trained = {"generator": self.generator, "fake": self.fake, "real": self.real, "critic": self.critic}
        self._optimisers = {
            name: torch.optim.Adam(
                [p for p in module.parameters() if p.requires_grad], lr=config.learning_rate, betas=(0.9, 0.99)
            )
            for name, module in self._trained.items()
        }

    def generate(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and pictures in [-1, 1] of a clip ``(t, 3, h, w)`` in [0, 1]; sides multiples of 2."""
        latents = self.generator.encode(upscale_bicubic(frames))
        noise = run_whole(self.generator.unet_steps(timestep_of(self.degradation), self.prompt), latents)
        latents = one_step(latents, noise, self.degradation)
        return latents, run_whole(self.generator.decoder_steps(), latents)

    def step(self, frames: Tensor, truth: Tensor, rng: torch.Generator) -> dict[str, float]:
        """One update of all networks.

        Args:
            frames: a clip ``(t, 3, h, w)``, RGB in [0, 1].
            truth: ``(t, 3, 4h, 4w)``.
            rng: of noise and time steps.

        Returns:
            The losses by name, unweighted.
        """
        latents, pictures = self.generate(frames)
        target = truth * 2.0 - 1.0
        real, fake = (_as_clip(clip) for clip in (target, pictures))
        losses = {
            "mse": F.mse_loss(pictures, target),
            "distillation": self._distillation(latents, rng),
            "gan": -self.critic(fake).mean(),
        }
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual((pictures + 1.0) / 2.0, truth)
        weighted = sum((getattr(self.config, name) * loss for name, loss in losses.items()), latents.new_zeros(()))
        self._update("generator", weighted)
        losses["critic"] = F.relu(1.0 - self.critic(real)).mean() + F.relu(1.0 + self.critic(fake.detach())).mean()
        self._update("critic", losses["critic"])
        losses["fake"] = denoising_loss(self.fake, latents.detach(), self.prompt, rng)
        self._update("fake", losses["fake"])
        with torch.no_grad():
            clean = self.real.encode(truth)
        losses["real"] = denoising_loss(self.real, clean, self.prompt, rng)
        self._update("real", losses["real"])
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def _distillation(self, latents: Tensor, rng: torch.Generator) -> Tensor:
        timestep = int(torch.randint(20, STEPS - 20, (), generator=rng))
        with torch.no_grad():
            noisy = add_noise(latents, torch.randn(latents.shape, generator=rng), timestep)
            real = self._estimate(self.real, noisy, timestep, self.prompt)
            if self.negative is not None:
                avoided = self._estimate(self.real, noisy, timestep, self.negative)
                real = avoided + self.config.guidance * (real - avoided)
            fake = self._estimate(self.fake, noisy, timestep, self.prompt)
        clean_real, clean_fake = (predict_clean(noisy, noise, timestep) for noise in (real, fake))
        return distillation_loss(latents, clean_real, clean_fake, self.config.consistency)

    @staticmethod
    def _estimate(network: UltraVSR, noisy: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        return run_whole(network.unet_steps(timestep, prompt), noisy)

    def _update(self, name: str, loss: Tensor) -> None:
        optimiser = self._optimisers[name]
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes."""
        return {
            name: {"module": module.state_dict(), "optimiser": self._optimisers[name].state_dict()}
            for name, module in self._trained.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Carry on from a :meth:`state_dict`."""
        for name, module in self._trained.items():
            module.load_state_dict(state[name]["module"])
            self._optimisers[name].load_state_dict(state[name]["optimiser"])

    def finished(self) -> UltraVSR:
        """A copy of the generator for inference, adapters merged."""
        network = copy.deepcopy(self.generator)
        merge_adapters(network.unet)
        merge_adapters(network.vae)
        return network.eval().requires_grad_(False)


def _as_clip(frames: Tensor) -> Tensor:
    """``(t, c, h, w)`` to ``(1, c, t, h, w)``."""
    return frames.transpose(0, 1)[None]


def _fit(
    parameters: Iterable[nn.Parameter], loss_of: Callable[[], Tensor], *, steps: int, learning_rate: float
) -> list[float]:
    """Minimise; a cosine takes the learning rate to a hundredth. Returns the losses."""
    optimiser = torch.optim.Adam(parameters, lr=learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, learning_rate / 100)
    losses = []
    for _ in range(steps):
        loss = loss_of()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


def train_autoencoder(network: UltraVSR, clips: Clips, *, steps: int, learning_rate: float = 2e-3) -> list[float]:
    """Train the autoencoder of a network of our own on clean frames, L1; its latents get unit variance by scaling."""
    rng = np.random.default_rng(1)

    def loss() -> Tensor:
        truth = clips.draw(rng)[1]
        latents = network.encode(truth)
        # Keeps the scale of the latents from drifting.
        decay = 1e-3 * latents.square().mean()
        return F.l1_loss(run_whole(network.decoder_steps(), latents), truth * 2.0 - 1.0) + decay

    losses = _fit(network.vae.parameters(), loss, steps=steps, learning_rate=learning_rate)
    with torch.no_grad():
        deviation = torch.cat([network.encode(clips.draw(rng)[1]) for _ in range(8)]).std()
    network.vae.register_to_config(scaling_factor=float(network.vae.config.scaling_factor / deviation))
    return losses


def train_denoiser(
    network: UltraVSR, clips: Clips, prompt: Tensor, *, steps: int, learning_rate: float = 2e-3
) -> list[float]:
    """Train UNet and temporal shift of a network of our own to denoise the latents of clean clips."""
    rng, noise = np.random.default_rng(2), torch.Generator().manual_seed(2)
    with torch.no_grad():
        latents = [network.encode(clips.draw(rng)[1]) for _ in range(min(steps, 200))]

    def loss() -> Tensor:
        return denoising_loss(network, latents[int(rng.integers(len(latents)))], prompt, noise)

    parts = (network.unet, network.unet_down_rts, network.unet_up_rts)
    parameters = [parameter for part in parts for parameter in part.parameters()]
    return _fit(parameters, loss, steps=steps, learning_rate=learning_rate)


def train(trainer: UltraTrainer, clips: Clips, folder: Path, *, steps: int, seed: int, save_every: int = 50) -> None:
    """Train up to step ``steps``; the state in ``folder``, written every few steps, is carried on from.

    A step is a function of the state, the seed and its number, so an interrupted run ends with the same weights as an
    uninterrupted one. The losses of every step are in ``losses.csv``.
    """
    saved, log = folder / "state.pt", folder / "losses.csv"
    done = 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        trainer.load_state_dict(state["trainer"])
        done = state["step"]
    rows: list[dict[str, float]] = []
    for step in range(done + 1, steps + 1):
        frames, truth = clips.draw(np.random.default_rng((seed, step)))
        losses = trainer.step(frames, truth, torch.Generator().manual_seed(1_000_003 * seed + step))
        rows.append({"step": step, **losses})
        if step % save_every == 0 or step == steps:
            _save({"trainer": trainer.state_dict(), "step": step}, saved)
            with log.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                if not file.tell():
                    writer.writeheader()
                writer.writerows(rows)
            print(step, *(f"{name} {np.mean([row[name] for row in rows]):.4f}" for name in losses), flush=True)
            rows.clear()


@torch.no_grad()
def validate(trainer: UltraTrainer, clips: Clips, count: int = 12) -> dict[str, float]:
    """Means over crops of the pictures before the colour fix.

    Returns:
        PSNR in dB of pictures and of bicubic enlargement (``psnr``, ``psnr_bicubic``), mean frame-to-frame difference
        of pictures, bicubic enlargement and truth (``change``, ``change_bicubic``, ``change_truth``), and by how much
        the error changes from frame to frame (``unsteady``, ``unsteady_bicubic``).
    """
    rng = np.random.default_rng(3)
    rows = []
    for _ in range(count):
        frames, truth = clips.draw(rng)
        pictures, bicubic = (
            enlarged.clamp(0.0, 1.0)
            for enlarged in ((trainer.generate(frames)[1] + 1.0) / 2.0, upscale_bicubic(frames))
        )
        row = {"change_truth": _change(truth)}
        for suffix, clip in (("", pictures), ("_bicubic", bicubic)):
            row["psnr" + suffix] = -10.0 * float(F.mse_loss(clip, truth).log10())
            row["change" + suffix] = _change(clip)
            row["unsteady" + suffix] = _change(clip - truth)
        rows.append(row)
    return {name: float(np.mean([row[name] for row in rows])) for name in sorted(rows[0])}


def _change(clip: Tensor) -> float:
    return float(clip.diff(dim=0).abs().mean())


def _save(state: dict[str, Any], path: Path) -> None:
    """Write in one move."""
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    partial.replace(path)


def _prepare(base: UltraVSR, folder: Path, stages: Mapping[str, Callable[[], list[float]]]) -> None:
    """Run the stages of training that ``folder`` does not have yet, one after the other, on ``base``."""
    for name, stage in stages.items():
        path = folder / f"{name}.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            base.load_state_dict(state["network"])
            base.vae.register_to_config(scaling_factor=state["scaling_factor"])
            continue
        begin = time.monotonic()
        losses = stage()
        _save({"network": base.state_dict(), "scaling_factor": base.vae.config.scaling_factor}, path)
        tenth = max(len(losses) // 10, 1)
        change = f"{np.mean(losses[:tenth]):.4f} to {np.mean(losses[-tenth:]):.4f}"
        print(f"{name}: {len(losses)} steps in {time.monotonic() - begin:.0f} s, loss {change}", flush=True)


def _train_tiny(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    folder: Path = arguments.run
    folder.mkdir(parents=True, exist_ok=True)
    clips = Clips(arguments.data, frames=arguments.frames, crop=arguments.crop)
    validation = Clips(arguments.validation, frames=8, crop=32)
    prompt = torch.zeros(1, 77, int(TINY.unet["cross_attention_dim"]))
    base = build(TINY)
    _prepare(
        base,
        folder,
        {
            "autoencoder": lambda: train_autoencoder(base, clips, steps=arguments.autoencoder_steps),
            "denoiser": lambda: train_denoiser(base, clips, prompt, steps=arguments.denoiser_steps),
        },
    )
    config = UltraTrainConfig(
        degradation=arguments.degradation,
        learning_rate=arguments.learning_rate,
        distillation=arguments.distillation,
        gan=arguments.gan,
        critic_width=16,
    )
    perceptual = Perceptual(arguments.vgg) if arguments.vgg is not None else None
    torch.manual_seed(arguments.seed)
    trainer = UltraTrainer(base, config, prompt=prompt, perceptual=perceptual)
    print("before:", _listed(validate(trainer, validation)), flush=True)
    train(trainer, clips, folder, steps=arguments.steps, seed=arguments.seed)
    result = validate(trainer, validation)
    print("after:", _listed(result))
    settings = {**TINY.vae, "scaling_factor": trainer.generator.vae.config.scaling_factor}
    metadata = {name: f"{value:.4f}" for name, value in result.items()}
    save_compact(
        trainer.finished(),
        replace(TINY, vae=settings, degradation=config.degradation),
        folder / "last.safetensors",
        metadata,
    )


def _listed(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="clips made by: python -m vsvsr.training build")
    parser.add_argument("validation", type=Path, help="another one, of photographs that are not trained on")
    parser.add_argument("run", type=Path, help="folder of the results; what is finished in it is not done again")
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--crop", type=int, default=32, help="side of the low-resolution crops")
    parser.add_argument("--autoencoder-steps", type=int, default=2500)
    parser.add_argument("--denoiser-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--degradation", type=float, default=0.8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--distillation", type=float, default=1.0)
    parser.add_argument("--gan", type=float, default=0.1)
    parser.add_argument("--vgg", type=Path, help="torchvision's vgg19 file, for the perceptual loss")
    parser.add_argument("--seed", type=int, default=0)
    _train_tiny(parser.parse_args())


if __name__ == "__main__":
    main()
