"""Low-rank adapters (LoRA): ``W + 8 / r B A``, as layers for training and merged into plain layers for inference."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

ALPHA = 8.0
"""The released configuration leaves PEFT's ``lora_alpha`` in place; with rank 4 an adapter counts twice."""

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
_CONVOLUTIONS = ("conv", "conv1", "conv2", "conv_in", "conv_shortcut", "conv_out", "quant_conv")

_UNET_ADAPTERS = {
    "default_encoder": ("down_blocks.", "conv_in"),
    "default_decoder": ("up_blocks.", "conv_out"),
    "default_others": ("mid_block.",),
}
_VAE_ADAPTERS = {"default_encoder": ("encoder.", "quant_conv")}

Layer = nn.Linear | nn.Conv2d


def unet_targets(unet: nn.Module) -> dict[str, list[str]]:
    """Names of the adapted layers of a UNet by adapter; the time embeddings get none."""
    return {adapter: _targets(unet, prefixes) for adapter, prefixes in _UNET_ADAPTERS.items()}


def vae_targets(vae: nn.Module) -> dict[str, list[str]]:
    """Names of the adapted layers of an autoencoder: its encoder's; the decoder gets none."""
    return {adapter: _targets(vae, prefixes) for adapter, prefixes in _VAE_ADAPTERS.items()}


def _targets(network: nn.Module, prefixes: tuple[str, ...]) -> list[str]:
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, Layer)
        and name.startswith(prefixes)
        and any(name == target or name.endswith(f".{target}") for target in _ATTENTION + _CONVOLUTIONS)
    ]


def adapters(network: nn.Module, *, vae: bool) -> dict[str, dict[str, "LoRA"]]:
    """The adapters in a network after `add_adapters`, by the name of the adapter and of the layer."""
    places = _VAE_ADAPTERS if vae else _UNET_ADAPTERS
    found = {name: module for name, module in network.named_modules() if isinstance(module, LoRA)}
    return {
        adapter: {name: module for name, module in found.items() if name.startswith(prefixes)}
        for adapter, prefixes in places.items()
    }


def factor_shapes(layer: Layer, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B: ``(r, in), (out, r)``, for a convolution ``(r, in, k, k), (out, r, 1, 1)``."""
    if isinstance(layer, nn.Conv2d):
        return (rank, layer.in_channels, *layer.kernel_size), (layer.out_channels, rank, 1, 1)
    return (rank, layer.in_features), (layer.out_features, rank)


def merge(layer: Layer, a: Tensor, b: Tensor) -> None:
    """Add ``8 / r B A`` to the layer's weight, summed over the rank ``r`` in fp32."""
    delta = (b.float().flatten(1) @ a.float().flatten(1)).view_as(layer.weight)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.float() + ALPHA / len(a) * delta)


class LoRA(nn.Module):
    """A frozen linear or convolution layer with a trainable adapter: ``base(x) + 8 / r B(A(x))``.

    B starts at zero and A as Gaussian, so that a fresh adapter changes nothing.
    """

    def __init__(self, base: Layer, rank: int) -> None:
        super().__init__()
        self.scale = ALPHA / rank
        self.base_layer: Layer = base.requires_grad_(False)
        self.lora_A: Layer
        self.lora_B: Layer
        if isinstance(base, nn.Conv2d):
            side, stride, padding = base.kernel_size[0], base.stride[0], int(base.padding[0])
            self.lora_A = nn.Conv2d(base.in_channels, rank, side, stride, padding, bias=False)
            self.lora_B = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        else:
            self.lora_A = nn.Linear(base.in_features, rank, bias=False)
            self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.normal_(self.lora_A.weight, std=1.0 / rank)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.scale * self.lora_B(self.lora_A(x))  # type: ignore[no-any-return]


def add_adapters(network: nn.Module, targets: Mapping[str, list[str]], rank: int) -> None:
    """Replace every target layer by a :class:`LoRA` around it."""
    for names in targets.values():
        for name in names:
            layer = network.get_submodule(name)
            assert isinstance(layer, Layer)
            network.set_submodule(name, LoRA(layer, rank))


def merge_adapters(network: nn.Module) -> None:
    """Replace every :class:`LoRA` by its base layer with the adapter merged in."""
    adapters = [(name, module) for name, module in network.named_modules() if isinstance(module, LoRA)]
    for name, module in adapters:
        merge(module.base_layer, module.lora_A.weight, module.lora_B.weight)
        network.set_submodule(name, module.base_layer)
