"""What a job is: everything that its finished parts depend on, as plain values for ``job.json``."""

import hashlib
import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import vapoursynth as vs

from vsvsr import weights
from vsvsr.filters.registry import FILTERS
from vsvsr.jobs.order import Opened, Order
from vsvsr.video.film import Film
from vsvsr.video.source import image_sequence

_OTHERWISE = {"device_index", "tile"}
"""Arguments that the identity has in another form: what computes, and the tiles that were chosen."""

type Identity = dict[str, object]

_ENDS = 1 << 20
"""Bytes of the source's head and of its tail that are hashed."""


def identify(order: Order, opened: Opened, device: str) -> Identity:
    """The identity of a job.

    Args:
        order: what is made.
        opened: what it opened.
        device: what computes, as `describe_device` says.
    """
    film = opened.film
    return {
        "source": _source(film),
        "frames": [film.frames.start, film.frames.stop],
        "filter": order.filter_name,
        "arguments": {name: _plain(value) for name, value in sorted(order.arguments.items()) if name not in _OTHERWISE},
        "tile": list(opened.tile),
        "weights": _weights(order),
        "versions": {
            "vsvsr": importlib.metadata.version("vsvsr"),
            "torch": importlib.metadata.version("torch"),
            "vapoursynth": str(vs.core.core_version).splitlines()[0],
        },
        "device": device,
        "encoder": " ".join(order.encoding.arguments(order.target)),
        "picture": f"{film.clip.width}x{film.clip.height} {film.clip.format.name}",
    }


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """What two identities differ in, as ``name: before, now``."""
    flat_before, flat_now = dict(_flat(before)), dict(_flat(now))
    names = sorted(name for name in flat_before | flat_now if flat_before.get(name) != flat_now.get(name))
    return [f"{name} was {flat_before.get(name, 'not given')}, is {flat_now.get(name, 'not given')}" for name in names]


def _flat(identity: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    for name, value in identity.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float | list) else str(value)


def _source(film: Film) -> Identity:
    path, stamps = film.source.path, film.source.timestamps
    files = image_sequence(path) if path.is_dir() else [path]
    states = [file.stat() for file in files]
    return {
        "size": sum(state.st_size for state in states),
        "time": max(state.st_mtime_ns for state in states),
        "ends": _digest(_ends(files[0], files[-1])),
        "frames": film.source.clip.num_frames,
        "timestamps": _digest([b" ".join(b"%d" % stamp for stamp in stamps)]),
    }


def _ends(first: Path, last: Path) -> Iterator[bytes]:
    with first.open("rb") as file:
        yield file.read(_ENDS)
    with last.open("rb") as file:
        file.seek(max(last.stat().st_size - _ENDS, 0))
        yield file.read(_ENDS)


def _weights(order: Order) -> Identity:
    """Hashes of the files that are given, and without a file of weights those of the chosen ones and their parts."""
    given = order.files
    (model,) = (argument for argument in FILTERS[order.filter_name].settings.arguments() if argument.name == "model")
    chosen = order.arguments.get("model") or model.otherwise
    hashes: Identity = {}
    for row in weights.MANIFEST:
        read = row.model == order.filter_name and (row.part or row.name == chosen)
        if read and "model_path" not in given and weights.location(row).exists():
            hashes[row.name] = row.sha256 or _digest(_content(weights.location(row)))
    return hashes | {name: _digest(_content(path)) for name, path in given.items()}


def _content(path: Path) -> Iterator[bytes]:
    """A file's bytes; of a folder names and sizes, since the files in it are large."""
    if path.is_dir():
        yield from (f"{file} {file.stat().st_size}\n".encode() for file in sorted(path.rglob("*")))
        return
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            yield block


def describe_device(order: Order) -> str:
    """What an order is computed on.

    Pixels depend on the kind of device, on what runs the network, and on a CPU on the number of threads, since sums are
    divided among them.
    """
    # Only now: the command line shows help, and what is wrong with torch, without it.
    import vsvsr.engine.threads  # noqa: F401  before torch: it decides how torch's threads wait

    # isort: split

    import torch

    from vsvsr.engine.device import choose_device

    settings = FILTERS[order.filter_name].settings.parse(order.arguments)
    if getattr(settings, "backend", "torch") == "onnx":
        from vsvsr.engine.onnx import choose_provider

        return choose_provider(settings.device_index).described
    device = choose_device(settings.device_index)
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _digest(pieces: Iterable[bytes]) -> str:
    hasher = hashlib.sha256()
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()
