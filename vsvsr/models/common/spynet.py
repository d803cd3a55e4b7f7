"""SPyNet optical flow (Ranjan and Black, 2017) in the layout of BasicSR's checkpoints."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsvsr.ops import flow_warp


class SPyNetLevel(nn.Module):
    """Residual flow of one pyramid level.

    ``(n, 8, h, w)`` (reference 3, warped support 3, flow 2) to ``(n, 2, h, w)``.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (8, 32, 64, 32, 16, 2)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 7, padding=3), nn.ReLU()]
        self.basic_module = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.basic_module(x)  # type: ignore[no-any-return]


class SPyNet(nn.Module):
    """Coarse-to-fine flow; index 0 of ``basic_module`` is the coarsest level.

    ``flow(p)`` says where pixel ``p`` of the reference lies in the support image: at ``p + flow(p)``.

    Args:
        levels: pyramid levels; the published weights have six.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, levels: int = 6) -> None:
        super().__init__()
        self.basic_module = nn.ModuleList(SPyNetLevel() for _ in range(levels))
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1))

    def forward(self, reference: Tensor, support: Tensor) -> Tensor:
        """Flow from ``reference`` to ``support``.

        Args:
            reference: RGB in [0, 1], ``(n, 3, h, w)``; sides greater than ``2 ** (levels - 1)``, 32 for six
                levels (a smaller side leaves no coarsest level).
            support: the same shape.

        Returns:
            ``(n, 2, h, w)`` in pixels, horizontal first.
        """
        height, width = reference.shape[-2:]
        multiple = 2 ** (len(self.basic_module) - 1)
        size = (height + -height % multiple, width + -width % multiple)  # -(-a // b) is exported as if it cut off
        pyramids = [[self._resize(self._normalise(image), size)] for image in (reference, support)]
        for pyramid in pyramids:
            for _ in range(len(self.basic_module) - 1):
                pyramid.insert(0, F.avg_pool2d(pyramid[0], 2))
        coarsest = pyramids[0][0]
        flow = coarsest.new_zeros(len(coarsest), 2, coarsest.shape[2] // 2, coarsest.shape[3] // 2)
        for level, ref, supp in zip(self.basic_module, *pyramids, strict=True):
            flow = self._double(flow, ref)
            warped = flow_warp(supp, flow, padding="border")
            flow = flow + level(torch.cat((ref, warped, flow), dim=1))
        flow = self._resize(flow, (height, width))
        # Plain numbers: a tensor would have to be brought from the host, which a CUDA graph cannot hold.
        return torch.cat((flow[:, :1] * (width / size[1]), flow[:, 1:] * (height / size[0])), dim=1)

    def _normalise(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std

    @staticmethod
    def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(image, size, mode="bilinear", align_corners=False)

    @staticmethod
    def _double(flow: Tensor, target: Tensor) -> Tensor:
        """Twice the size and twice the length, with a replicated last row or column where ``target`` is odd."""
        flow = F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True) * 2.0
        missing = (0, target.shape[3] - flow.shape[3], 0, target.shape[2] - flow.shape[2])
        # An exported network takes frames of other sizes than the one that it is exported with.
        return F.pad(flow, missing, mode="replicate") if torch.onnx.is_in_onnx_export() or any(missing) else flow
