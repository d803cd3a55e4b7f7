"""A FastReal that starts from another network: a published per-frame one, or a FastReal of another scale."""

from dataclasses import replace

import torch
from torch import nn

from vsvsr.models.fastreal.config import PLAIN, Variant
from vsvsr.models.fastreal.network import FastRealVSR
from vsvsr.models.realesrgan import SRVGG


def from_per_frame(published: SRVGG, flow: nn.Module, *, state_gain: float, hsa: Variant = PLAIN.hsa) -> FastRealVSR:
    """The recurrent network of size `PLAIN` whose pictures are at first those of ``published``.

    The first convolutions become RB1; the next is widened to take the warped state beside the features; the others
    are RB2, whose result is the state. With a gain of 0 the state has no influence, and results equal those of
    ``published`` to rounding; training then hardly discovers the state.

    Args:
        published: 64 channels, 17 hidden convolutions (animevideov3).
        flow: a trained `LightFlow`.
        state_gain: standard deviation of the state's weights in the widened convolution, relative to that of the
            weights for the features.
        hsa: attention over the state.
    """
    network = FastRealVSR(replace(PLAIN, hsa=hsa))
    split = 2 * PLAIN.rb1_blocks  # a convolution and an activation each
    chain = list(published.body)
    for target, layer in zip(network.rb1.children(), chain[:split], strict=True):
        target.load_state_dict(layer.state_dict())
    widened, *rest = network.rb2.children()
    source = chain[split]
    assert isinstance(source, nn.Conv2d)
    features = source.weight
    state = torch.randn_like(features) * (state_gain * features.std())
    widened.load_state_dict({"weight": torch.cat((state, features), dim=1), "bias": source.bias})
    for target, layer in zip((*rest, network.conv_last), chain[split + 1 :], strict=True):
        target.load_state_dict(layer.state_dict())
    network.flow_estimator.load_state_dict(flow.state_dict())
    return network


def can_be_halved(network: FastRealVSR) -> bool:
    """Whether `halved` takes ``network``: scale 4, and a single head."""
    return (network.scale, network.config.head) == (4, "single")


def halved(network: FastRealVSR) -> FastRealVSR:
    """The network of scale 2 whose pictures are those of ``network``, averaged over 2x2 pixels.

    The single head is one convolution and a pixel shuffle: the average of its subpixels is that of their weights. Exact
    but for a bicubic base, whose average is a little softer than bicubic interpolation to the smaller size.

    Args:
        network: one that `can_be_halved`.

    Raises:
        ValueError: it cannot.
    """
    if not can_be_halved(network):
        raise ValueError("only a network of scale 4 with a single head can be halved")
    result = FastRealVSR(replace(network.config, scale=2))
    state = network.state_dict()
    for name in ("conv_last.weight", "conv_last.bias"):
        subpixels = state[name].unflatten(0, (3, 2, 2, 2, 2))  # colour, then row and its half, column and its half
        state[name] = subpixels.mean(dim=(2, 4)).flatten(0, 2)
    result.load_state_dict(state)
    return result
