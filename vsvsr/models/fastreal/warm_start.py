"""A FastReal that starts from a published per-frame network."""

import torch
from torch import nn

from vsvsr.models.fastreal.config import PLAIN
from vsvsr.models.fastreal.network import FastRealVSR
from vsvsr.models.realesrgan import SRVGG


def from_per_frame(published: SRVGG, flow: nn.Module, *, state_gain: float) -> FastRealVSR:
    """The recurrent network of size `PLAIN` whose pictures are at first those of ``published``.

    The first convolutions become RB1; the next is widened to take the warped state beside the features; the others
    are RB2, whose result is the state. With a gain of 0 the state has no influence, and results equal those of
    ``published`` to rounding; training then hardly discovers the state.

    Args:
        published: 64 channels, 17 hidden convolutions (animevideov3).
        flow: a trained `LightFlow`.
        state_gain: standard deviation of the state's weights in the widened convolution, relative to that of the
            weights for the features.
    """
    network = FastRealVSR(PLAIN)
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
