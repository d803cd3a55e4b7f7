"""Buffered bytes of a stage, counted from shapes: also on the meta device, so for any size on any machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vsvsr.models.ultra.network import Step
from vsvsr.models.ultra.rts import TemporalUnit
from vsvsr.models.ultra.skips import Skips


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Bytes for one tile.

    Attributes:
        skips: all skip connections of one frame.
        inputs: features of one frame before each temporal shift module.
        stream: what a stream keeps between two frames; independent of the length of the clip.
    """

    skips: int
    inputs: tuple[int, ...]
    stream: int


def waiting(steps: Sequence[Step], latents: Tensor) -> Waiting:
    """Count by a walk over the steps of a stage with one frame ``(1, 4, h, w)``.

    Before each temporal unit one frame waits with its skip connections, and reduced features of two.
    """
    skips, x = Skips(), latents
    most, stream = 0, 0
    inputs: list[int] = []
    for step in steps:
        if isinstance(step, TemporalUnit):
            inputs.append(x.nbytes)
            stream += x.nbytes + 2 * step.reduce(x).nbytes + skips.nbytes
        else:
            x = step(x, skips)
            most = max(most, skips.nbytes)
    return Waiting(skips=most, inputs=tuple(inputs[::2]), stream=stream)
