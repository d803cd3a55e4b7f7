"""The gated trunk: which tiles of which residual blocks run."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsvsr.models.common import ResidualBlock, ResidualBlocksWithInputConv
from vsvsr.ops.block_skip import BlockWeights, SkipGrid, Tiles

SAMPLE = 4
"""Change is measured at every fourth pixel in both directions: a sixteenth of the memory and time, the same average."""


_MANY = 256
"""Counts on a device that are added up together."""


@dataclass
class Tally:
    """How many tiles of blocks ran, of how many; the first frame of a pass runs everywhere and counts as well."""

    total: int = 0
    _known: int = 0
    _on_device: list[Tensor] = field(default_factory=list)

    def add(self, executed: int | Tensor, total: int) -> None:
        """Count one block, or one head; tiles that a device has counted are looked at when somebody asks."""
        self.total += total
        if isinstance(executed, int):
            self._known += executed
            return
        self._on_device.append(executed)
        if len(self._on_device) == _MANY:
            self._on_device = [torch.cat(self._on_device).sum(0, keepdim=True)]

    @property
    def executed(self) -> int:
        """Tiles that ran; waits for the device."""
        return self._known + sum(int(count) for count in self._on_device)

    @property
    def fraction(self) -> float:
        return self.executed / max(self.total, 1)


def sample(image: Tensor) -> Tensor:
    """A copy of the pixels of ``(n, c, h, w)`` at which change is measured: fp32 ``(n, h / SAMPLE, w / SAMPLE, c)``."""
    return image.permute(0, 2, 3, 1)[:, ::SAMPLE, ::SAMPLE].to(torch.float32, copy=True)


def tile_mean(samples: Tensor, tile: int) -> Tensor:
    """Average of samples ``(n, h, w, c)`` per tile: ``(n, rows, columns, c)``; the last tiles may be cut."""
    pooled = F.avg_pool2d(samples.permute(0, 3, 1, 2), tile // SAMPLE, ceil_mode=True, count_include_pad=False)
    return pooled.permute(0, 2, 3, 1)


def block_weights(block: ResidualBlock) -> BlockWeights:
    """The convolutions of ``block`` in the form that `SkipGrid` takes."""
    biases = block.conv1.bias, block.conv2.bias
    assert biases[0] is not None
    assert biases[1] is not None
    return BlockWeights(block.conv1.weight, biases[0], block.conv2.weight, biases[1])


def residual_blocks(trunk: ResidualBlocksWithInputConv) -> list[ResidualBlock]:
    """The blocks of a trunk in order."""
    blocks = trunk.main[2]
    assert isinstance(blocks, nn.Sequential)
    return [block for block in blocks if isinstance(block, ResidualBlock)]


def expand(active: Tensor, side: int, size: torch.Size) -> Tensor:
    """A decision per tile ``(n, rows, columns)`` as one per pixel ``(n, h, w)``; tiles have ``side`` pixels."""
    n, rows, columns = active.shape
    pixels = active[:, :, None, :, None].expand(n, rows, side, columns, side)
    return pixels.reshape(n, rows * side, columns * side)[:, : size[0], : size[1]]


class TileGate:
    """Decides which tiles changed enough since they ran last.

    ``E = 1 - sigmoid(W g(|now - reference|) + b)`` with ``g`` the average over the tile (eq. 5 and 6 of the paper); a
    tile runs where ``E >= threshold``.

    Attributes:
        tile: side of a tile.
    """

    def __init__(self, estimator: nn.Linear, threshold: float, tile: int) -> None:
        # In fp32, so that decisions near the threshold do not depend on the precision of the network.
        self._weight, self._bias = estimator.weight.float(), estimator.bias.float()
        self._threshold, self.tile = threshold, tile

    def __call__(self, samples: Tensor, reference: Tensor) -> Tensor:
        """Which tiles run, bool ``(n, rows, columns)``; samples are those of `sample`."""
        return self.decide(self.execution(self.change(samples, reference)))

    def change(self, samples: Tensor, reference: Tensor) -> Tensor:
        """What the estimator sees, ``(n, rows, columns, c)``."""
        return tile_mean((samples - reference).abs_(), self.tile)

    def execution(self, change: Tensor) -> Tensor:
        """The confidence E, ``(..., c)`` to ``(...)``; not rounded by mixed precision, since it is compared."""
        with torch.autocast(change.device.type, enabled=False):
            return torch.sigmoid(-F.linear(change.to(self._weight.dtype), self._weight, self._bias))[..., 0]

    def decide(self, execution: Tensor) -> Tensor:
        """Where E reaches the threshold; nowhere at 1, everywhere at 0."""
        return (execution >= self._threshold) & (self._threshold < 1)

    def move(self, reference: Tensor, samples: Tensor, active: Tensor) -> Tensor:
        """The reference for later frames: ``samples`` in active tiles."""
        return torch.where(expand(active, self.tile // SAMPLE, samples.shape[1:3])[..., None], samples, reference)


class GatedTrunk:
    """A trunk that skips the tiles that hardly changed.

    Where the gate skips block ``m``, given its input,

    * ``hold=True``: its last residual in that tile is added again; the gate's reference is the input that gave it, so
      that slow changes add up until the block runs;
    * ``hold=False``: the tile passes unchanged, as in the paper; the reference is the input in the previous frame.

    The first frame runs everywhere, and so does a block where that costs no more. ``stride`` blocks share the decision
    of the first of them.
    """

    def __init__(
        self,
        trunk: ResidualBlocksWithInputConv,
        gate: TileGate,
        *,
        hold: bool,
        stride: int,
        tally: Tally,
    ) -> None:
        head, activation, _ = trunk.main
        self._entry = nn.Sequential(head, activation)
        self._blocks = [block_weights(block) for block in residual_blocks(trunk)]
        self._gate, self._hold, self._stride, self._tally = gate, hold, stride, tally
        self._grid: SkipGrid | None = None
        self._references: list[Tensor] = []
        self._held: list[Tensor] = []
        self._entry_held: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        entry = self._entry(x)
        first = self._grid is None
        if self._hold:
            entry = self._hold_entry(entry)
        if self._grid is None:
            self._grid = SkipGrid(len(x), x.shape[2], x.shape[3], self._gate.tile, x.device)
        grid = self._grid
        pixels = grid.pixels(entry)
        tiles = grid.everywhere
        for m, block in enumerate(self._blocks):
            if m % self._stride == 0:
                samples = sample(grid.image(pixels))
                if first:
                    self._references.append(samples)
                else:
                    tiles = self._choose(m // self._stride, samples)
            if first and self._hold:
                self._held.append(torch.zeros_like(pixels))
            grid.block_skip_(pixels, self._held[m] if self._hold else None, block, tiles)
            self._tally.add(tiles.count, grid.count)
        return grid.image(pixels)

    def _hold_entry(self, entry: Tensor) -> Tensor:
        """The entry with its unchanged tiles replaced by those of earlier frames, so that a static tile stays static.

        Flow between equal pictures is not quite zero: each warp would shift a held state a little further.
        """
        samples = sample(entry)
        if self._entry_held is not None:
            active = self._gate(samples, sample(self._entry_held))
            entry = torch.where(expand(active, self._gate.tile, entry.shape[2:])[:, None], entry, self._entry_held)
        self._entry_held = entry
        return entry

    def _choose(self, decision: int, samples: Tensor) -> Tiles:
        """The tiles where the blocks of a decision run; moves its reference."""
        assert self._grid is not None
        active = self._gate(samples, self._references[decision])
        tiles = self._grid.choose(active)
        if self._hold and tiles is not self._grid.everywhere:
            self._references[decision] = self._gate.move(self._references[decision], samples, active)
        else:
            self._references[decision] = samples
        return tiles
