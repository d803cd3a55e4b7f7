"""Losses that several recipes use."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsvsr import weights
from vsvsr.errors import UserError
from vsvsr.ops import flow_warp

BORDER = 16
"""High-resolution pixels on each side of a crop that are not judged: convolutions see zeros beyond it, and errors that
belong to the rim, a large part of a crop and a small one of a frame, would rule the training."""


def inner(pictures: Tensor) -> Tensor:
    """Pictures ``(..., h, w)`` without their `BORDER`."""
    return pictures[..., BORDER:-BORDER, BORDER:-BORDER]


def charbonnier(prediction: Tensor, truth: Tensor, epsilon: float = 1e-6) -> Tensor:
    """``mean(sqrt(d^2 + epsilon))``, a smooth L1."""
    return ((prediction - truth).square() + epsilon).sqrt().mean()


def psnr_loss(prediction: Tensor, truth: Tensor) -> Tensor:
    """Minus a five-hundredth of the mean PSNR in dB over the batch ``(n, ...)``: every clip counts alike.

    The factor gives gradients of the size of `charbonnier`'s.
    """
    errors = (prediction - truth).square().flatten(1).mean(1)
    return 0.02 * torch.log10(errors + 1e-6).mean()


def temporal_consistency(
    pictures: Tensor, truth: Tensor, flows: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """``loss(e_t, warp(e_{t-1}))`` with ``e = pictures - truth``: errors that come and go cost, those that stay do not.

    Args:
        pictures: ``(n, t, 3, s h, s w)``, at least two frames.
        truth: the same shape.
        flows: into the frame before each frame, ``(n, t, 2, h, w)`` in low-resolution pixels; the first is not used.
        loss: of two tensors ``(n, t - 1, 3, s h, s w)``.
    """
    errors = pictures - truth
    scale = pictures.shape[-1] // flows.shape[-1]
    large = scale * F.interpolate(flows[:, 1:].flatten(0, 1), scale_factor=scale, mode="bilinear")
    before = flow_warp(errors[:, :-1].flatten(0, 1), large, padding="border").view_as(errors[:, 1:])
    return loss(errors[:, 1:], before)


class Perceptual(nn.Module):
    """L1 distance of VGG19 features before the ReLU of conv1_2, 2_2, 3_4, 4_4 and 5_4, weighted 0.1, 0.1, 1, 1, 1.

    Args:
        path: torchvision's state dict of VGG19 (``features.*``), a local file.

    Raises:
        UserError: the file is missing, cannot be read, or holds another network.
    """

    mean: Tensor
    std: Tensor

    _WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)
    _WEIGHTS: dict[int, float] = {2: 0.1, 7: 0.1, 16: 1.0, 25: 1.0, 34: 1.0}  # noqa: RUF012  # a constant

    def __init__(self, path: Path) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in self._WIDTHS:
            if width:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])
        state, _ = weights.read_tensors(path)
        for name, value in self.state_dict().items():
            if name not in state or state[name].shape != value.shape:
                raise UserError(f"{path} is not VGG19 ({name} is missing or differs); give torchvision's vgg19 file")
        self.load_state_dict({name: state[name] for name in self.state_dict()})
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, pictures: Tensor, truth: Tensor) -> Tensor:
        """Both RGB in [0, 1], ``(t, 3, h, w)``; a scalar."""
        x, y = ((images - self.mean) / self.std for images in (pictures, truth))
        loss: Tensor = torch.zeros((), device=pictures.device)
        for place, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if place in self._WEIGHTS:
                loss += self._WEIGHTS[place] * F.l1_loss(x, y)
        return loss
