"""A small optical flow estimator for the compact size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsvsr.ops import flow_warp

_WIDTH = 16
_WINDOW = 5
_NOISE = 3e-4
"""Regularises the motion where the picture is flat: the squared gradient that noise and compression make."""


def _average(x: Tensor) -> Tensor:
    """Mean over a window with replicated borders, as two passes of one dimension.

    Sums of shifted views: on a CPU several times faster than average pooling.
    """
    x = F.pad(x, (_WINDOW // 2,) * 4, mode="replicate")
    for dim in (-1, -2):
        length = x.shape[dim] - _WINDOW + 1
        total = x.narrow(dim, 0, length) + x.narrow(dim, 1, length)
        for offset in range(2, _WINDOW):
            total.add_(x.narrow(dim, offset, length))
        x = total
    return x * (1 / _WINDOW**2)


def lucas_kanade(reference: Tensor, warped: Tensor) -> Tensor:
    """One step of least-squares motion (Lucas and Kanade, 1981) over a smooth window.

    Args:
        reference: grey, ``(n, 1, h, w)``.
        warped: the support image warped by the motion so far, the same shape.

    Returns:
        What to add to the motion, ``(n, 2, h, w)`` in pixels, at most 1.5 in each direction.
    """
    mean = F.pad((reference + warped) * 0.5, (1, 1, 1, 1), mode="replicate")
    dx = (mean[..., 1:-1, 2:] - mean[..., 1:-1, :-2]) * 0.5
    dy = (mean[..., 2:, 1:-1] - mean[..., :-2, 1:-1]) * 0.5
    dt = warped - reference
    moments = torch.cat((dx * dx, dx * dy, dy * dy, dx * dt, dy * dt), dim=1)
    xx, xy, yy, xt, yt = _average(_average(moments)).chunk(5, dim=1)
    xx, yy = xx + _NOISE, yy + _NOISE
    step: Tensor = torch.cat((xy * yt - yy * xt, xy * xt - xx * yt), dim=1) / (xx * yy - xy * xy)
    return step.clamp(-1.5, 1.5)


class LightFlow(nn.Module):
    """Coarse-to-fine flow: in each level Lucas-Kanade steps on grey pictures, then a learned correction.

    Like SPyNet, ``flow(p)`` says that pixel ``p`` of the reference lies in the support image at ``p + flow(p)``. The
    three 3x3 convolutions are shared by all levels; about 4,500 multiply-accumulates per pixel, a seventieth of
    SPyNet's. A new network corrects nothing: what is left is plain pyramidal Lucas-Kanade.

    Args:
        levels: pyramid levels; the finest has the size of the frame.
    """

    def __init__(self, levels: int = 5) -> None:
        super().__init__()
        self.levels = levels
        self.correction = nn.Sequential(
            nn.Conv2d(5, _WIDTH, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(_WIDTH, 2, 3, padding=1),
        )
        for parameter in self.correction[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, reference: Tensor, support: Tensor) -> Tensor:
        """RGB in [0, 1], both ``(n, 3, h, w)``, to the flow ``(n, 2, h, w)`` in pixels, horizontal first."""
        height, width = reference.shape[-2:]
        return self.pyramid(reference, support)[-1][..., :height, :width]

    def pyramid(self, reference: Tensor, support: Tensor) -> list[Tensor]:
        """The flow of each level, coarsest first, in pixels of that level."""
        multiple = 2 ** (self.levels - 1)
        height, width = reference.shape[-2:]
        padding = (0, -width % multiple, 0, -height % multiple)
        images = [[F.pad(x.mean(1, keepdim=True), padding, mode="replicate")] for x in (reference, support)]
        for image in images:
            for _ in range(self.levels - 1):
                image.insert(0, F.avg_pool2d(image[0], 2))
        flows: list[Tensor] = []
        for ref, supp in zip(*images, strict=True):
            if flows:
                flow = F.interpolate(flows[-1], scale_factor=2, mode="bilinear", align_corners=False) * 2.0
            else:
                flow = ref.new_zeros(len(ref), 2, *ref.shape[-2:])
            # The finest level costs more than all others together and has little left to find.
            for _ in range(1 if len(flows) == self.levels - 1 else 2):
                flow = flow + lucas_kanade(ref, flow_warp(supp, flow, padding="border"))
            warped = flow_warp(supp, flow, padding="border")
            inputs = torch.cat((ref - 0.5, warped - 0.5, (ref - warped) * 8.0, flow), dim=1)
            flows.append(flow + self.correction(inputs.contiguous(memory_format=torch.channels_last)))
        return flows
