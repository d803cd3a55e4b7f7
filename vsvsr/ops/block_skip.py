"""Residual blocks that run on chosen tiles of a feature map only."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from vsvsr.ops.convolution import conv2d
from vsvsr.ops.dispatch import runs_kernels


@dataclass(frozen=True)
class BlockWeights:
    """The two 3x3 convolutions of a residual block: weights ``(c, c, 3, 3)``, biases ``(c,)``."""

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor

    def dense(self, x: Tensor) -> Tensor:
        """``conv2(relu(conv1(x)))`` with zero padding."""
        hidden = F.relu_(conv2d(x, self.weight1, self.bias1, padding=(1, 1)))
        return conv2d(hidden, self.weight2, self.bias2, padding=(1, 1))

    @cached_property
    def by_tap(self) -> tuple[Tensor, Tensor]:
        """Both weights as the kernel reads them, ``(3, 3, inputs, outputs)``."""
        first, second = (weight.permute(2, 3, 1, 0).contiguous() for weight in (self.weight1, self.weight2))
        return first, second


@dataclass(frozen=True)
class Tiles:
    """Tiles of a `SkipGrid` that are active.

    Attributes:
        numbers: of the active ones, ``(k,)``; where the host does not know how many, of all, the active ones in front.
        count: how many are active; on a GPU where the kernel runs, int64 of one element there.
    """

    numbers: Tensor
    count: int | Tensor


def block_skip_reference(
    x: Tensor, held: Tensor, block: BlockWeights, active: Tensor, tile: int
) -> tuple[Tensor, Tensor]:
    """The plain form: ``x + r`` and ``r``, where ``r = block(x)`` on active tiles and ``held`` on the others.

    Args:
        x: feature maps ``(n, c, h, w)``.
        held: residual to use where the block is skipped, the same shape; zeros make it the identity.
        block: the block's convolutions.
        active: which tiles run, bool ``(n, rows, columns)``; the last tiles may extend past the map.
        tile: side of a tile.
    """
    height, width = x.shape[-2:]
    everywhere = active.repeat_interleave(tile, 1).repeat_interleave(tile, 2)[:, None, :height, :width]
    residual = torch.where(everywhere, block.dense(x), held)
    return x + residual, residual


@torch.library.custom_op("vsvsr::block_residual", mutates_args=("held",))
def fused_block_residual(
    x: Tensor,
    held: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    tiles: Tensor,
    count: Tensor,
    height: int,
    width: int,
    tile: int,
) -> None:
    """The kernel, for what ``runs_kernels`` accepts: ``held`` becomes the residual on the first ``count`` of the listed
    tiles, as pixels; weights are those of ``BlockWeights.by_tap``.
    """
    from vsvsr.triton_kernels.block_skip import block_residual  # type: ignore[import-not-found]  # its own folder

    target = held.contiguous()
    block_residual(x.contiguous(), target, weight1, bias1, weight2, bias2, tiles, count, height, width, tile)
    if target is not held:
        held.copy_(target)


@fused_block_residual.register_fake
def _(
    x: Tensor,
    held: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    tiles: Tensor,
    count: Tensor,
    height: int,
    width: int,
    tile: int,
) -> None:
    return None


@torch.library.custom_op("vsvsr::choose_tiles", mutates_args=("active",))
def fused_choose_tiles(active: Tensor, enough: int) -> tuple[Tensor, Tensor]:
    """The kernel, for what ``runs_kernels`` accepts: numbers of the tiles of which ``active`` ``(tiles,)`` says so, or
    of all where so many are, and then ``active`` becomes true everywhere; and how many.
    """
    from vsvsr.triton_kernels.block_skip import choose_tiles

    return choose_tiles(active, enough)  # type: ignore[no-any-return]


@fused_choose_tiles.register_fake
def _(active: Tensor, enough: int) -> tuple[Tensor, Tensor]:
    return active.new_empty(active.shape, dtype=torch.int64), active.new_empty(1, dtype=torch.int64)


class SkipGrid:
    """Indices of the tiles of ``n`` maps of ``h x w`` in a list of pixels, for gathering and scattering.

    Maps are kept as pixels ``(n h w + 1, c)``; the last one is zero and stands for all that lies outside. Tiles do
    not overlap and are numbered item by item, row by row.
    """

    def __init__(self, n: int, height: int, width: int, tile: int, device: torch.device) -> None:
        self.n, self.height, self.width, self.tile = n, height, width, tile
        self.rows, self.columns = -(-height // tile), -(-width // tile)
        self.count = n * self.rows * self.columns
        self._gather, _ = self._tables(2, device)
        self._inside = self._tables(1, device)[1]
        self._scatter, _ = self._tables(0, device)

    def _tables(self, halo: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Per tile with its halo: the pixels' numbers ``(count, side²)``, and which lie in the frame."""
        span = torch.arange(-halo, self.tile + halo, device=device)
        y = (torch.arange(self.rows, device=device)[:, None] * self.tile + span)[:, None, :, None]
        x = (torch.arange(self.columns, device=device)[:, None] * self.tile + span)[None, :, None, :]
        inside = (y >= 0) & (y < self.height) & (x >= 0) & (x < self.width)
        first = torch.arange(self.n, device=device).view(-1, 1, 1, 1, 1) * (self.height * self.width)
        outside = self.n * self.height * self.width
        numbers = torch.where(inside, first + y * self.width + x, outside).flatten(0, 2).flatten(1)
        return numbers, inside.expand(self.n, *inside.shape).flatten(0, 2)

    def pixels(self, x: Tensor) -> Tensor:
        """A copy of maps ``(n, c, h, w)`` as pixels ``(n h w + 1, c)``."""
        pixels = x.new_zeros(self.n * self.height * self.width + 1, x.shape[1])
        self.image(pixels).copy_(x)
        return pixels

    def image(self, pixels: Tensor) -> Tensor:
        """Pixels as maps ``(n, c, h, w)``, channels last, sharing memory."""
        return pixels[:-1].view(self.n, self.height, self.width, -1).permute(0, 3, 1, 2)

    def gather(self, pixels: Tensor, tiles: Tensor) -> Tensor:
        """The listed tiles ``(k,)`` with a halo of 2: ``(k, c, tile + 4, tile + 4)``, channels last."""
        side = self.tile + 4
        rows = pixels.index_select(0, self._gather[tiles].flatten())
        return rows.view(-1, side, side, pixels.shape[1]).permute(0, 3, 1, 2)

    def inside(self, tiles: Tensor) -> Tensor:
        """Which pixels of the listed tiles with a halo of 1 lie in the frame: ``(k, tile + 2, tile + 2)``."""
        return self._inside[tiles]

    def runs_everywhere(self, tiles: int) -> bool:
        """Whether a convolution over the whole map is cheaper than one of so many gathered tiles."""
        return tiles * self._worth >= 2 * self.n * self.height * self.width

    @property
    def _worth(self) -> int:
        """Pixels of both convolutions. Beside them gathering and scattering took no measurable time on a CPU."""
        return (self.tile + 2) ** 2 + self.tile**2

    @cached_property
    def everywhere(self) -> Tiles:
        """All tiles."""
        return Tiles(torch.arange(self.count, device=self._inside.device), self.count)

    def choose(self, active: Tensor) -> Tiles:
        """The tiles that are ``active``, bool ``(n, rows, columns)``, contiguous, or all where that costs no more;
        ``active`` is changed to say which.

        Where kernels run the host learns nothing of them: it would wait for all that the device still has to do.
        """
        flat = active.view(-1)
        if not runs_kernels(flat):
            numbers = flat.nonzero()[:, 0]
            if self.runs_everywhere(len(numbers)):
                flat.fill_(True)
                return self.everywhere
            return Tiles(numbers, len(numbers))
        return Tiles(*fused_choose_tiles(flat, -(-2 * self.n * self.height * self.width // self._worth)))

    def block_skip_(self, x: Tensor, held: Tensor | None, block: BlockWeights, tiles: Tiles) -> None:
        """``block_skip_reference`` on pixels, in place: ``held`` becomes the residual, ``x`` gets it added.

        Runs over the whole map when every tile is known to be active. Else the kernel runs, or the plain form: it
        gathers each active tile with a halo of 2, convolves without padding, and scatters. Between the convolutions
        what lies outside the frame is set to zero, as the padding of a convolution over the whole map would be.

        Args:
            x: feature maps as pixels.
            held: held residuals as pixels; None where skipped tiles pass unchanged.
            block: the block's convolutions.
            tiles: of this grid.
        """
        if isinstance(tiles.count, int) and tiles.count == self.count:
            residual = block.dense(self.image(x))
            if held is None:
                self.image(x).add_(residual)
                return
            self.image(held).copy_(residual)
        elif isinstance(tiles.count, Tensor):
            held = torch.zeros_like(x) if held is None else held
            first, second = block.by_tap
            weights = (first, block.bias1, second, block.bias2)
            listed = tiles.numbers, tiles.count
            fused_block_residual(x, held, *weights, *listed, self.height, self.width, self.tile)
        elif tiles.count > 0:
            hidden = F.relu_(conv2d(self.gather(x, tiles.numbers), block.weight1, block.bias1))
            hidden *= self.inside(tiles.numbers)[:, None]
            residual = conv2d(hidden, block.weight2, block.bias2).permute(0, 2, 3, 1).flatten(0, 2)
            where = self._scatter[tiles.numbers].flatten()
            if held is None:
                x.index_add_(0, where, residual)
                x[-1] = 0
                return
            held.index_copy_(0, where, residual)
            held[-1] = 0
        if held is not None:
            x += held
