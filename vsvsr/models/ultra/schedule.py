"""The one diffusion step: from the degradation factor to the time step, and from the noise estimate to the latents."""

import math

import torch
from torch import Tensor

STEPS = 1000


def alphas_cumprod() -> Tensor:
    """``alpha_bar`` of Stable Diffusion 2.1: betas between 0.00085 and 0.012, linear in their roots; ``(1000,)``."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
    return (1.0 - betas).cumprod(0)


def clamp_degradation(degradation: float) -> float:
    """The factor d within what the schedule can express, ``sqrt(alpha_bar)`` of its ends: 0.0683 to 0.9996."""
    alphas = alphas_cumprod()
    return min(max(degradation, math.sqrt(alphas[-1].item())), math.sqrt(alphas[0].item()))


def timestep_of(degradation: float) -> int:
    """``argmin_t |d^2 - alpha_bar_t|``, the time step at which the schedule is as noisy as the clip is degraded."""
    return int((alphas_cumprod() - degradation**2).abs().argmin())


def one_step(latents: Tensor, noise: Tensor, degradation: float) -> Tensor:
    """``(z - sqrt(1 - d^2) * noise) / d``, in fp32 because small ``d`` multiplies rounding by up to 15.

    Args:
        latents: of the degraded frames, ``(t, 4, h, w)``.
        noise: the UNet's estimate, the same shape.
        degradation: d, clamped as by :func:`clamp_degradation`.
    """
    restored = (latents.float() - math.sqrt(1.0 - degradation**2) * noise.float()) / degradation
    return restored.to(latents.dtype)
