"""How fast the filters are on this machine, as a whole and part by part."""

import importlib.metadata
import importlib.util
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vapoursynth as vs

from vsvsr import weights
from vsvsr.errors import UserError
from vsvsr.filters.apply import apply
from vsvsr.filters.registry import FILTERS
from vsvsr.filters.settings import ChunkedSettings
from vsvsr.video.source import one_line_errors, open_video

if TYPE_CHECKING:
    import torch

    from vsvsr.engine.recurrent import RecurrentNetwork
    from vsvsr.filters.clip import Clip

SIZES = ((640, 360), (1280, 720), (1920, 1080))

PARTS = ("upload", "step", "render", "download", "copy")

_SKIPPED = 2
"""Frames for which memory is got and algorithms are chosen."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured.

    Attributes:
        filter_name: of ``core.vsvsr``.
        model: its weights.
        backend: what runs the network.
        width: of the source, in pixels.
        height: of the source, in pixels.
        half: in fp16.
    """

    filter_name: str
    model: str
    backend: str
    width: int
    height: int
    half: bool


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What was found.

    Attributes:
        fps: frames a second of linear playback through VapourSynth; None if the filter cannot be made.
        parts: milliseconds of a frame in each part, one after the other; empty where the filter has no such parts.
        memory: bytes that were taken on the GPU, whoever counts them; 0 on the CPU.
        problem: why there is nothing else.
    """

    fps: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    memory: int = 0
    problem: str = ""


def cases(filter_names: Sequence[str], sizes: Sequence[tuple[int, int]], *, on_cpu: bool) -> Iterator[Case]:
    """Every model that is here, with every back end and precision that makes sense."""
    for name, (width, height) in itertools.product(filter_names, sizes):
        arguments = {argument.name: argument for argument in FILTERS[name].settings.arguments()}
        backends = arguments["backend"].choices if "backend" in arguments else ("torch",)
        for row in weights.MANIFEST:
            if row.model != name or row.part or not weights.present(row):
                continue
            for backend, half in itertools.product(backends, (False,) if on_cpu else (False, True)):
                if backend != "onnx" or importlib.util.find_spec("onnxruntime") is not None:
                    yield Case(filter_name=name, model=row.name, backend=backend, width=width, height=height, half=half)


def measure(case: Case, device_index: int | None, frames: int) -> Speed:
    """Play a bundled clip, resized, through the filter.

    Args:
        case: what is measured.
        device_index: as the filters take it.
        frames: how many are timed.
    """
    arguments: dict[str, object] = {"model": case.model}
    if device_index is not None:
        arguments["device_index"] = device_index
    if "backend" in {argument.name for argument in FILTERS[case.filter_name].settings.arguments()}:
        arguments["backend"] = case.backend
    chunked = issubclass(FILTERS[case.filter_name].settings, ChunkedSettings)
    if chunked:
        arguments |= {"length": frames, "overlap": 0}
    skipped = 0 if chunked else _SKIPPED  # a chunk is computed at once, when its first frame is asked for
    free = _free_memory(device_index)
    try:
        source = _source(case, skipped + frames)
        with one_line_errors():
            output = apply(case.filter_name, source, arguments)
            played = output.frames(close=True)
            for _ in range(skipped):
                next(played)
            begun = time.perf_counter()
            count = sum(1 for _ in played)
            seconds = time.perf_counter() - begun
        memory = free - _free_memory(device_index)
        parts = _parts(case, arguments, frames) if case.filter_name == "FastReal" else {}
    except (UserError, vs.Error) as error:
        return Speed(problem=str(error))
    return Speed(fps=count / seconds, parts=parts, memory=memory)


def _source(case: Case, frames: int) -> vs.VideoNode:
    with as_file(files("vsvsr").joinpath("assets", "bigbuckbunny_320x180.mp4")) as path:
        clip = open_video(path).clip[:frames]
    kind = vs.RGBH if case.half else vs.RGBS
    return clip.resize.Bicubic(width=case.width, height=case.height, format=kind)


def _parts(case: Case, arguments: Mapping[str, object], frames: int) -> dict[str, float]:
    """Milliseconds of each part of FastReal, each waited for: medians over the frames.

    ``upload`` brings a frame to the device, ``step`` makes the state, ``render`` the picture, ``download`` brings it to
    the host, ``copy`` into VapourSynth's frame; on a CPU the picture is made there. In playback they overlap.
    """
    from vsvsr.engine.worker import worker_of
    from vsvsr.filters.clip import Clip
    from vsvsr.filters.fastreal import DEFAULT_MODEL, FastRealSettings, open_model
    from vsvsr.filters.weights import find_weights
    from vsvsr.models.fastreal import load

    settings = FastRealSettings.parse(arguments)
    clip = Clip(format="RGBH" if case.half else "RGBS", width=case.width, height=case.height, frames=frames)
    path = find_weights("FastReal", settings, DEFAULT_MODEL)
    loaded = load(path)
    model, device, _ = open_model(settings, clip, path, loaded)
    return worker_of(device).run(lambda: _timed(model, device, clip, loaded.scale, frames))


def _timed(
    model: "RecurrentNetwork[Any]", device: "torch.device", clip: "Clip", scale: int, frames: int
) -> dict[str, float]:
    import torch

    from vsvsr.engine.device import compute_type, sample_type
    from vsvsr.engine.planes import Output, Planes
    from vsvsr.engine.transfer import transfer

    dtype = sample_type(clip.format)
    way = transfer(device, compute_type(clip.format, device, fp16=False))
    pictures = (
        torch.rand((3, clip.height, clip.width)).to(dtype),
        torch.empty((3, clip.height * scale, clip.width * scale), dtype=dtype),
    )
    source, target = (
        Planes(
            x.shape[1], x.shape[2], dtype, tuple((plane.data_ptr(), plane.stride(0) * dtype.itemsize) for plane in x)
        )
        for x in pictures
    )
    frame, state = way.read(source), None
    output = Output(target)

    def step() -> None:
        nonlocal state
        state = model.step(state, source)

    def make(work: Callable[[Output], object]) -> None:
        nonlocal output
        output = Output(target)
        work(output)

    def render(output: Output) -> None:
        assert state is not None
        model.render(state, output)

    def collect() -> None:
        if output.arrival is not None:
            output.arrival.collect(target)

    works: dict[str, Callable[[], object]] = {
        "upload": lambda: way.read(source),
        "step": step,
        "download": lambda: make(lambda output: way.write(lambda planes: None, output, frame.non_finite)),
        "copy": collect,
        "render": lambda: make(render),
        "": collect,
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for n in range(_SKIPPED + frames):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            if n >= _SKIPPED:
                seconds[name].append(time.perf_counter() - begun)
    found = {name: statistics.median(values) * 1e3 for name, values in seconds.items()}
    # A step begins with an upload, and a picture ends with a download.
    found |= {"step": found["step"] - found["upload"], "render": found["render"] - found["download"]}
    return {name: found[name] for name in PARTS}


def _free_memory(device_index: int | None) -> int:
    import torch

    if device_index == -1 or not torch.cuda.is_available():
        return 0
    return torch.cuda.mem_get_info(device_index or 0)[0]


def machine(device_index: int | None) -> dict[str, object]:
    """What the figures belong to."""
    import torch

    from vsvsr.engine.device import choose_device, cuda_driver

    device = choose_device(device_index)
    on_gpu = device.type == "cuda"
    packages = ("vsvsr", "torch", "vapoursynth", "triton", "cupy-cuda13x", "onnxruntime", "onnxruntime-gpu")
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": processor(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()}",
        "device": torch.cuda.get_device_name(device) if on_gpu else str(device),
        "driver": f"CUDA {cuda_driver()}" if on_gpu else "",
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,  # type: ignore[no-untyped-call]
        "versions": {name: version for name in packages if (version := _version(name)) is not None},
    }


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
