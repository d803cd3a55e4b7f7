"""The pixel-shuffle head of BasicVSR and its descendants."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsvsr.ops import conv2d

type Write = Callable[[Sequence[Tensor]], None]
"""Writes the top left of a picture into three 2-D tensors of one size: R, G and B, of any strides, type and device."""

_BAND = {"cpu": 4096}
"""LR pixels rendered at a time, by device: on a CPU few enough for the wide maps to stay in its caches."""
_BAND_ELSEWHERE = 1 << 18


class PixelShuffleHead(nn.Module):
    """Base of networks that reconstruct x4 with two pixel shuffles; its layers are at the top level of the state dict.

    One output pixel depends on features at most 2 LR pixels away, so a halo of 2 makes tiled reconstruction exact.

    Attributes:
        scale: output pixels per input pixel in each direction.
    """

    scale = 4

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.upconv1 = nn.Conv2d(channels, channels * 4, 3, padding=1)
        self.upconv2 = nn.Conv2d(channels, 64 * 4, 3, padding=1)
        self.conv_hr = nn.Conv2d(64, 64, 3, padding=1)
        self.conv_last = nn.Conv2d(64, 3, 3, padding=1)

    def reconstruct(self, features: Tensor, frames: Tensor) -> Tensor:
        """Features ``(n, channels, h, w)``, LR frames ``(n, 3, h, w)``: HR frames ``(n, 3, 4h, 4w)``, not clamped."""
        x = F.leaky_relu(F.pixel_shuffle(self.upconv1(features), 2), 0.1)
        x = F.leaky_relu(F.pixel_shuffle(self.upconv2(x), 2), 0.1)
        x = self.conv_last(F.leaky_relu(self.conv_hr(x), 0.1))
        base = F.interpolate(frames, scale_factor=4, mode="bilinear", align_corners=False)
        return x + base  # type: ignore[no-any-return]

    @torch.no_grad()
    def render(self, features: Tensor, frame: Tensor, planes: Sequence[Tensor]) -> None:
        """``reconstruct`` for one frame, band by band, written straight into three planes.

        Memory and time are those of a band's maps: the full-size ones would be ``1 KiB`` per HR pixel.

        Args:
            features: ``(1, channels, h, w)``.
            frame: the LR frame, ``(1, 3, h, w)``.
            planes: R, G and B, each ``(4h, 4w)`` with any strides, type and device.
        """
        height = frame.shape[-2]
        base = F.interpolate(frame, scale_factor=4, mode="bilinear", align_corners=False)[0]
        rows = self._band_rows(features)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            part = slice(4 * top, 4 * bottom)
            _add(self._band(features, top, bottom), base[:, part], [plane[part] for plane in planes])

    @staticmethod
    @torch.no_grad()
    def add_base(detail: Tensor, frame: Tensor, planes: Sequence[Tensor]) -> None:
        """`render` for a ``detail`` that is already computed."""
        base = F.interpolate(frame, scale_factor=4, mode="bilinear", align_corners=False)[0]
        _add(detail, base, planes)

    def detail(self, features: Tensor) -> Tensor:
        """What `render` adds to the enlarged frame, ``(3, 4h, 4w)``, made band by band as well."""
        height = features.shape[-2]
        rows = self._band_rows(features)
        bands = [self._band(features, top, min(top + rows, height)) for top in range(0, height, rows)]
        return torch.cat(bands, dim=1)

    @staticmethod
    def _band_rows(features: Tensor) -> int:
        return max(_BAND.get(features.device.type, _BAND_ELSEWHERE) // features.shape[-1], 1)

    def _band(self, features: Tensor, top: int, bottom: int) -> Tensor:
        """LR rows ``top`` to ``bottom`` of the reconstruction without its base: ``(3, 4 (bottom - top), 4w)``.

        A convolution sees zeros beyond the frame's border and loses a row at a border of the band.
        """
        start, stop, height = max(top - 2, 0), min(bottom + 2, features.shape[2]), features.shape[2]
        x = features[:, :, start:stop]
        for conv, shuffle in ((self.upconv1, 2), (self.upconv2, 2), (self.conv_hr, 1), (self.conv_last, 0)):
            at_top, at_bottom = start == 0, stop == height
            x = conv2d(F.pad(x, (0, 0, at_top, at_bottom)), conv.weight, conv.bias, padding=(0, 1))
            start, stop = start + (not at_top), stop - (not at_bottom)
            if shuffle:
                x = F.leaky_relu_(F.pixel_shuffle(x, shuffle) if shuffle > 1 else x, 0.1)
                start, stop, height = start * shuffle, stop * shuffle, height * shuffle
        return x[0, :, 4 * top - start : 4 * bottom - start]


def _add(detail: Tensor, base: Tensor, planes: Sequence[Tensor]) -> None:
    """Write ``detail + base``, both ``(3, h, w)``, into three planes of any strides, type and device."""
    for plane, above, below in zip(planes, detail, base, strict=True):
        if plane.device == above.device:
            torch.add(above, below, out=plane)
        else:
            plane.copy_(above + below)
