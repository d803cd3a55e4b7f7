"""How each filter is tested: one module per filter, named as it is in lower case, with its `CASE`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Fade:
    """How fast one frame with a few absurd samples is forgotten.

    Attributes:
        frames: from so many frames later on pictures are within ``distance`` of those of the clean clip.
        distance: largest difference of a sample, where pictures are in [0, 1].
        arguments: of the filter, besides the case's; no restart may do the forgetting.
    """

    frames: int = 3
    distance: float = 0.01
    arguments: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One filter under test.

    Attributes:
        weights: writes a weights file into a folder, of a network small enough for hundreds of frames, and returns it.
        arguments: what makes it small, and its restarts frequent.
        restarts: first frames after a restart or at a border of its grid.
        network_runs: how often the network may run in linear playback, extra runs for context included.
        frames: length of the clip.
        cuts: frames that start a scene.
        requests: random ones.
        scale: output over source size.
        fade: how fast absurd samples are forgotten.
    """

    weights: Callable[[Path], Path]
    arguments: dict[str, object]
    restarts: tuple[int, ...]
    network_runs: int
    frames: int = 120
    cuts: tuple[int, ...] = (33, 34, 77)
    requests: int = 300
    scale: int = 4
    fade: Fade = field(default_factory=Fade)
