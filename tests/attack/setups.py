"""Filters to attack: small networks, small clips, random arguments, and what their frames must be."""

import gc
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch
import vapoursynth as vs
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.cases import CASES
from tests.clips import clip_path
from tests.pixels import digest
from vsvsr.engine.worker import worker_of
from vsvsr.models import skipvsr
from vsvsr.models.common import PixelShuffleHead, padding, spynet
from vsvsr.streaming import Segments

FRAMES = 24
SIZES = ((16, 16), (16, 16), (17, 19), (24, 16))
TILED = (48, 40)
PATIENCE = 300.0
"""Seconds for one frame, after which it counts as hanging."""
_KEPT_REFERENCES = 500
_CHEAP = ("FastReal", "FastReal", "MIA", "Skip")


class _Level(nn.Module):
    """In place of a level of SPyNet."""

    def __init__(self) -> None:
        super().__init__()
        self.basic_module = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.basic_module(x)  # type: ignore[no-any-return]


def _head(head: PixelShuffleHead, channels: int = 64) -> None:
    """In place of the head's constructor, with 4 channels for 64."""
    nn.Module.__init__(head)
    head.upconv1 = nn.Conv2d(channels, channels * 4, 3, padding=1)
    head.upconv2 = nn.Conv2d(channels, 4 * 4, 3, padding=1)
    head.conv_hr = nn.Conv2d(4, 4, 3, padding=1)
    head.conv_last = nn.Conv2d(4, 3, 3, padding=1)


@contextmanager
def slim() -> Iterator[None]:
    """Makes small what no setting makes small, and what would take nine tenths of the time: SPyNet, its smallest frame,
    and the head of BasicVSR.
    """
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(spynet, "SPyNetLevel", _Level))
        stack.enter_context(mock.patch.object(spynet.SPyNet.__init__, "__defaults__", (3,)))
        stack.enter_context(mock.patch.object(padding, "SMALLEST", 16))
        stack.enter_context(mock.patch.object(PixelShuffleHead, "__init__", _head))
        yield


@dataclass(frozen=True)
class Stage:
    """A filter and its arguments."""

    name: str
    arguments: tuple[tuple[str, object], ...]

    def reach(self, n: int) -> range:
        """The source frames that frame ``n`` may need, if no cut makes it fewer."""
        given = dict(self.arguments)
        if "segment" in given:
            segments = Segments(length=int(str(given["segment"])), warmup=int(str(given["warmup"])))
            return range(segments.origin(n), n + 1)
        length, overlap = int(str(given["length"])) or FRAMES, int(str(given["overlap"]))
        start = n - n % length
        return range(max(start - overlap, 0), min(start + length + overlap, FRAMES))


@dataclass(frozen=True)
class Setup:
    """A clip and one filter on it, or two.

    Attributes:
        size: of the clip.
        cuts: its frames that start a scene.
        stages: from the clip on.
    """

    size: tuple[int, int]
    cuts: tuple[int, ...]
    stages: tuple[Stage, ...]

    def reach(self, n: int) -> set[int]:
        """The source frames that frame ``n`` may need."""
        needed = {n}
        for stage in reversed(self.stages):
            needed = {i for m in needed for i in stage.reach(m)}
        return needed

    @property
    def names(self) -> str:
        """The filters'."""
        return ", ".join(stage.name for stage in self.stages)


@dataclass
class Pool:
    """Weights, source clips and references of a whole attack.

    Attributes:
        weights: file of each filter.
        seed: of the setups.
        variety: how many setups to draw from; each takes time for its reference.
    """

    weights: dict[str, Path]
    seed: str
    variety: int = 10
    _clips: dict[tuple[int, int], vs.VideoNode] = field(default_factory=dict)
    _references: OrderedDict[Setup, list[str]] = field(default_factory=OrderedDict)

    def draw(self, rng: random.Random, *, sure: bool = False) -> Setup:
        """One of the attack's setups; see `draw`."""
        return draw(random.Random(f"{self.seed}/{rng.randrange(self.variety)}"), sure=sure)

    def clip(self, size: tuple[int, int], cuts: tuple[int, ...]) -> vs.VideoNode:
        """A piece of a real film; each frame is decoded once."""
        if size not in self._clips:
            film = vs.core.bs.VideoSource(str(clip_path("bikes.mp4")), cachemode=0)[:FRAMES]
            scaled = vs.core.resize.Bicubic(film, *size, format=vs.RGBS, matrix_in_s="709")
            scaled.std.SetVideoCache(mode=1, fixedsize=1, maxsize=FRAMES)
            for _ in scaled.frames(close=True):
                pass
            self._clips[size] = scaled
        return marked(self._clips[size], cuts)

    def open(self, setup: Setup, source: vs.VideoNode) -> vs.VideoNode:
        """The filters of a setup on ``source``. VapourSynth keeps none of the frames: each request reaches them."""
        clip = source
        for number, stage in enumerate(setup.stages):
            if number:
                clip = clip.resize.Bilinear(*setup.size)
            filtered = getattr(vs.core.vsvsr, stage.name)
            clip = filtered(clip, model_path=str(self.weights[stage.name]), device_index=-1, **dict(stage.arguments))
        clip.std.SetVideoCache(mode=0)
        return clip

    def reference(self, setup: Setup) -> list[str]:
        """Digests of linear playback, one request at a time."""
        if setup not in self._references:
            output = self.open(setup, self.clip(setup.size, setup.cuts))
            digests = []
            for n in range(FRAMES):
                with output.get_frame(n) as frame:
                    digests.append(digest(frame))
            self._references[setup] = digests
            if len(self._references) > _KEPT_REFERENCES:
                self._references.popitem(last=False)
        self._references.move_to_end(setup)
        return self._references[setup]


def marked(clip: vs.VideoNode, cuts: tuple[int, ...]) -> vs.VideoNode:
    """The clip with these frames marked as starts of scenes."""
    for cut in cuts:
        after = [clip[cut + 1 :]] if cut + 1 < clip.num_frames else []
        clip = vs.core.std.Splice([clip[:cut], clip[cut].std.SetFrameProps(_SceneChangePrev=1), *after])
    return clip


@contextmanager
def pool(folder: Path, seed: str) -> Iterator[Pool]:
    """Small networks of all filters, for as long as the context lasts."""
    with slim():
        files: dict[str, Path] = {}
        for name, case in CASES.items():
            if name == "Skip":  # the case's is a published network
                torch.manual_seed(1)
                network = skipvsr.SkipVSR(8, 1)
                files[name] = folder / "skip.safetensors"
                save_file({key: value.contiguous() for key, value in network.state_dict().items()}, files[name])
            else:
                files[name] = case.weights(folder)
        yield Pool(files, seed)
        gc.collect()
        worker_of(torch.device("cpu")).run(lambda: None)


def draw(rng: random.Random, *, sure: bool = False) -> Setup:
    """A random setup.

    Args:
        rng: makes the choices.
        sure: without previews, and with regard to cuts.
    """
    names = [rng.choice((*CASES, *CASES, *CASES, *_CHEAP * 2))]
    if rng.random() < 0.15:
        names.append(rng.choice(_CHEAP))
    tiled = names == ["FastReal"] and rng.random() < 0.1
    cuts = sorted(rng.sample(range(1, FRAMES), rng.choice((0, 0, 1, 2, 3))))
    return Setup(
        TILED if tiled else rng.choice(SIZES),
        tuple(cuts),
        tuple(Stage(name, tuple(sorted(_ARGUMENTS[name](rng, tiled, sure).items()))) for name in names),
    )


def _recurrent(rng: random.Random, tiled: bool, sure: bool) -> dict[str, object]:
    segment = rng.choice((0, 3, 5, 8, 12, 20))
    return {
        "segment": segment,
        "warmup": rng.randint(0, min(segment, 4)) if segment else 0,
        "state_cache": rng.choice((0, 1, 1)),
        "scene_change": rng.choice((1, 2) if sure else (0, 1, 2)),
        "preview": 0 if sure else rng.choice((0, 0, 0, 1)),
        **({"tile": (32, 32), "tile_pad": rng.choice((0, 4))} if tiled else {}),
    }


def _chunked(rng: random.Random, tiled: bool, sure: bool) -> dict[str, object]:
    return {
        "length": rng.choice((0, 2, 4, 6, 6, 8, 12)),
        "overlap": rng.choice((0, 1, 1, 2, 3)),
        "state_cache": rng.choice((0, 1, 10)),
        "scene_change": rng.choice((1, 2) if sure else (0, 1, 2)),
    }


def _mia(rng: random.Random, tiled: bool, sure: bool) -> dict[str, object]:
    return {**_chunked(rng, tiled, sure), "refresh": rng.choice((0, 1, 3))}


def _skip(rng: random.Random, tiled: bool, sure: bool) -> dict[str, object]:
    return {**_chunked(rng, tiled, sure), "threshold": rng.choice((0.0, 0.5))}


_ARGUMENTS: dict[str, Callable[[random.Random, bool, bool], dict[str, object]]] = {
    "FastReal": _recurrent,
    "MIA": _mia,
    "Skip": _skip,
    "Ultra": _chunked,
}
