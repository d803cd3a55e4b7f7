"""The network of UltraVSR: stock Stable Diffusion parts, driven block by block with temporal shift between them."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vsvsr.errors import UserError
from vsvsr.models.ultra.rts import RTSForm, RTSModule, TemporalUnit
from vsvsr.models.ultra.skips import Skips

SCALE = 4
"""Output pixels per input pixel in each direction."""
VAE_FACTOR = 8
UNET_REACH = 16
DECODER_REACH = 8
"""Frames that the stages reach to each side: two for each of the 8 and 4 temporal shift modules."""

FrameStep = Callable[[Tensor, Skips], Tensor]
Step = FrameStep | TemporalUnit
"""A step sees frames ``(t, c, h, w)`` one by one, with the skip connections of these frames, or mixes them."""


def extra(module: str) -> Any:
    """Import ``diffusers`` or ``transformers``, which only this model needs."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f'{module} is not installed; install it with: pip install "vsvsr[ultra]"') from None


@dataclass(frozen=True, kw_only=True)
class UltraConfig:
    """What a network is built from.

    Attributes:
        unet: arguments of diffusers' ``UNet2DConditionModel``.
        vae: arguments of diffusers' ``AutoencoderKL``.
        rts_conv_channels: reduced channels of all convolution units; None for the released rule.
        rts_attention_channels: the same of all attention units.
        rts_form: see :data:`vsvsr.models.ultra.rts.RTSForm`.
        degradation: d where nothing is known of a clip.
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    rts_conv_channels: int | None = None
    rts_attention_channels: int | None = None
    rts_form: RTSForm = field(default="released")
    degradation: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.degradation <= 1:
            raise ValueError(f"degradation is {self.degradation}; it may be from 0 to 1")


_VAE_BLOCKS = {
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
FULL = UltraConfig(
    unet={"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True},
    vae={"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, **_VAE_BLOCKS},
)
"""Stable Diffusion 2.1-base."""
TINY = UltraConfig(
    unet={
        "block_out_channels": (16, 16, 32, 32),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
        "norm_num_groups": 8,
        "use_linear_projection": True,
    },
    vae={"block_out_channels": (16, 16, 32, 32), "layers_per_block": 1, "norm_num_groups": 8, **_VAE_BLOCKS},
    # The released rule leaves nothing of so few channels.
    rts_conv_channels=6,
    rts_attention_channels=48,
)
"""The same code path with 0.7 million parameters."""


class UltraVSR(nn.Module):
    """UNet and autoencoder with temporal shift modules at the 12 places of the released code.

    Eight lie in the UNet, after each down block and before each up block, four in the decoder, before each up block.
    Skip connections carry what was there before the shift. Fresh modules leave the stock networks' results unchanged.

    Args:
        unet: diffusers' ``UNet2DConditionModel``.
        vae: diffusers' ``AutoencoderKL``.
        config: sizes of the temporal shift modules.

    Attributes:
        degradation: see :class:`UltraConfig`.
    """

    # The stock networks are untyped.
    unet: Any
    vae: Any

    def __init__(self, unet: nn.Module, vae: nn.Module, config: UltraConfig = FULL) -> None:
        super().__init__()
        self.unet = unet
        self.vae = vae
        self.degradation = config.degradation
        self.rts_form = config.rts_form

        def modules(widths: tuple[int, ...]) -> nn.ModuleList:
            return nn.ModuleList(
                RTSModule(
                    width,
                    conv_channels=config.rts_conv_channels,
                    attention_channels=config.rts_attention_channels,
                    form=config.rts_form,
                )
                for width in widths
            )

        down = tuple(self.unet.config.block_out_channels)
        decoder = tuple(self.vae.config.block_out_channels)
        self.unet_down_rts = modules(down)
        self.unet_up_rts = modules((down[-1], *down[:0:-1]))
        self.decoder_up_rts = modules((decoder[-1], *decoder[:0:-1]))

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return self.unet.device  # type: ignore[no-any-return]

    def encode(self, frames: Tensor) -> Tensor:
        """Scaled mean of the posterior: RGB in [0, 1], ``(t, 3, 8h, 8w)``, to latents ``(t, 4, h, w)``."""
        moments = self.vae.quant_conv(self.vae.encoder(frames * 2.0 - 1.0))
        return moments.chunk(2, dim=1)[0] * self.vae.config.scaling_factor  # type: ignore[no-any-return]

    def unet_steps(self, timestep: int, prompt: Tensor) -> list[Step]:
        """Latents ``(t, 4, h, w)`` to the noise estimate of the same shape.

        Args:
            timestep: 0 to 999.
            prompt: text embedding of the clip, ``(1, tokens, width)``; frames whose `Skips` have one follow that.
        """
        unet = self.unet
        time = unet.time_embedding(unet.get_time_embed(prompt, timestep))

        def conditions(x: Tensor) -> dict[str, Tensor]:
            return {"temb": time.expand(len(x), -1)}

        def cross_attention(block: Any, x: Tensor, skips: Skips) -> dict[str, Tensor]:
            known = conditions(x)
            if getattr(block, "has_cross_attention", False):
                text = prompt if skips.prompt is None else skips.prompt
                known["encoder_hidden_states"] = text.expand(len(x), -1, -1)
            return known

        def enter(x: Tensor, skips: Skips) -> Tensor:
            x = unet.conv_in(x)
            skips.push(x)
            return x

        def down(block: Any) -> FrameStep:
            def step(x: Tensor, skips: Skips) -> Tensor:
                x, outputs = block(hidden_states=x, **cross_attention(block, x, skips))
                for output in outputs:
                    skips.push(output)
                return x

            return step

        def middle(x: Tensor, skips: Skips) -> Tensor:
            return unet.mid_block(x, **cross_attention(unet.mid_block, x, skips))  # type: ignore[no-any-return]

        def up(block: Any) -> FrameStep:
            def step(x: Tensor, skips: Skips) -> Tensor:
                carried = tuple(reversed([skips.pop() for _ in block.resnets]))
                # Sides that are no multiples of 8 were rounded up on the way down.
                size = skips.top_size() if block.upsamplers is not None else None
                known = cross_attention(block, x, skips)
                return block(  # type: ignore[no-any-return]
                    hidden_states=x, res_hidden_states_tuple=carried, upsample_size=size, **known
                )

            return step

        def leave(x: Tensor, skips: Skips) -> Tensor:
            return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))  # type: ignore[no-any-return]

        steps: list[Step] = [enter]
        for block, rts in zip(unet.down_blocks, self._units(self.unet_down_rts), strict=True):
            steps += [down(block), *rts]
        steps.append(middle)
        for block, rts in zip(unet.up_blocks, self._units(self.unet_up_rts), strict=True):
            steps += [*rts, up(block)]
        return [*steps, leave]

    def decoder_steps(self) -> list[Step]:
        """Latents ``(t, 4, h, w)`` to pictures in [-1, 1], ``(t, 3, 8h, 8w)``, not clamped."""
        vae, decoder = self.vae, self.vae.decoder

        def enter(x: Tensor, skips: Skips) -> Tensor:
            x = vae.post_quant_conv(x / vae.config.scaling_factor)
            return decoder.mid_block(decoder.conv_in(x))  # type: ignore[no-any-return]

        def up(block: Any) -> FrameStep:
            return lambda x, skips: self._decode(block, x)

        def leave(x: Tensor, skips: Skips) -> Tensor:
            return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))  # type: ignore[no-any-return]

        steps: list[Step] = [enter]
        for block, rts in zip(decoder.up_blocks, self._units(self.decoder_up_rts), strict=True):
            steps += [*rts, up(block)]
        return [*steps, leave]

    def _decode(self, block: Any, x: Tensor) -> Tensor:
        if self.vae.encoder.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)  # type: ignore[no-any-return]
        return block(x)  # type: ignore[no-any-return]

    def enable_checkpointing(self) -> None:
        """Training recomputes activations in the backward pass instead of keeping them."""
        self.unet.enable_gradient_checkpointing()
        self.vae.enable_gradient_checkpointing()
        for module in self.modules():
            if isinstance(module, TemporalUnit):
                module.checkpointing = True

    @staticmethod
    def _units(modules: nn.ModuleList) -> list[tuple[TemporalUnit, TemporalUnit]]:
        return [module.units for module in modules if isinstance(module, RTSModule)]


def build(config: UltraConfig) -> UltraVSR:
    """A network with random weights, identity temporal shift."""
    diffusers = extra("diffusers")
    return UltraVSR(diffusers.UNet2DConditionModel(**config.unet), diffusers.AutoencoderKL(**config.vae), config).eval()


def run_whole(steps: list[Step], frames: Tensor) -> Tensor:
    """All steps over all frames of a clip at once, ``(t, c, h, w)``: the form for training."""
    skips = Skips()
    for step in steps:
        frames = step(frames) if isinstance(step, TemporalUnit) else step(frames, skips)
    return frames


def upscale_bicubic(frames: Tensor) -> Tensor:
    """Four times larger, ``(t, 3, h, w)`` to ``(t, 3, 4h, 4w)``, with the kernel of Pillow (a = -0.5)."""
    # For enlargement the filter of antialias=True has the plain support, and PyTorch's only kernel with a = -0.5.
    return F.interpolate(frames, scale_factor=SCALE, mode="bicubic", antialias=True)
