"""Weights files that are damaged or crafted, and what comes of loading them: a working network, or one line of refusal.

``attack(seed, count)`` is what a longer run calls; every file follows from its seed alone.
"""

import io
import json
import random
import shutil
import signal
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.filters import fastreal as fastreal_case
from tests.filters import mia as mia_case
from tests.filters import ultra as ultra_case
from tests.ultra_files import released_state, write_base_folder
from vsvsr.errors import UserError
from vsvsr.models import fastreal, mia, skipvsr, ultra
from vsvsr.models.common.loading import Loaded
from vsvsr.models.ultra.checkpoints import load_released

SECONDS = 20.0
"""Of the processor's time, so that neighbours do not count; longer is a hang."""
MEMORY = 48_000_000
"""Bytes that loading may take besides eight times the file."""


@dataclass(frozen=True)
class Subject:
    """A kind of file.

    Attributes:
        file: a valid one.
        load: what reads it.
        run: makes a frame with what was loaded.
    """

    file: Path
    load: Callable[[Path], Loaded[Any]]
    run: Callable[[Any], object]


@dataclass
class Report:
    """What an attack came to.

    Attributes:
        outcomes: files by outcome, ``works`` or ``refused``.
        memory: the most bytes that loading a file took, and that file.
        seconds: the longest processor time that loading a file took, and that file.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    memory: tuple[int, str] = (0, "")
    seconds: tuple[float, str] = (0.0, "")


class Hang(BaseException):
    """Passes by every ``except Exception``."""


def subjects(folder: Path) -> dict[str, Subject]:
    """Small valid files of each model, in every layout that its loader reads."""
    torch.manual_seed(1)
    small = {name: value.contiguous() for name, value in skipvsr.SkipVSR(8, 2).state_dict().items()}
    save_file(small, folder / "skip.safetensors")
    torch.save({"params": small}, folder / "skip.pth")
    torch.save({"params": small}, folder / "old.pth", _use_new_zipfile_serialization=False)
    masked = load_file(mia_case.weights(folder))
    torch.save({"params": masked}, folder / "mia.pth")
    base = folder / "base"
    base.mkdir()
    write_base_folder(base)
    torch.save(released_state(ultra.build(ultra.TINY)), folder / "ultra.pkl")

    def released(path: Path) -> Loaded[Any]:
        return load_released(path, base, ultra.TINY)

    return {
        "fastreal": Subject(fastreal_case.weights(folder), fastreal.load, _run_fastreal),
        "skip": Subject(folder / "skip.safetensors", _load_gated, _run_chunk),
        "skip pth": Subject(folder / "skip.pth", _load_gated, _run_chunk),
        "skip old pth": Subject(folder / "old.pth", _load_gated, _run_chunk),
        "mia": Subject(folder / "mia.safetensors", mia.load, _run_chunk),
        "mia pth": Subject(folder / "mia.pth", mia.load, _run_chunk),
        "ultra": Subject(ultra_case.weights(folder), ultra.load, _run_ultra),
        "ultra released": Subject(folder / "ultra.pkl", released, _run_ultra),
    }


def _load_gated(path: Path) -> Loaded[Any]:
    return skipvsr.load(path, threshold=0.5)


def _run_fastreal(network: fastreal.FastRealVSR) -> None:
    frame = torch.rand(1, 3, network.min_side, network.min_side)
    hidden = network.propagate(frame, frame, network.propagate(frame, None, None))
    network.render(hidden, frame, torch.empty(3, network.scale * 8, network.scale * 8).unbind())


def _run_chunk(network: skipvsr.SkipVSR | mia.MIAVSR) -> None:
    for picture in network.upscale([torch.rand(3, 16, 16)], range(1)):
        assert picture.shape == (3, 64, 64)


def _run_ultra(network: ultra.UltraVSR) -> None:
    prompt = torch.zeros(1, 77, network.unet.config.cross_attention_dim)
    upscaler = ultra.Upscaler(network, degradation=network.degradation, prompt=prompt)
    restoration = upscaler.restoration(0)
    assert restoration.push(torch.rand(3, 16, 16)) is None
    for restored in restoration.finish():
        upscaler.render(restored, torch.empty(3, 64, 64).unbind())


def attack(seed: int, count: int) -> Report:
    """Load ``count`` files.

    Raises:
        AssertionError: what was loaded does not run, the refusal is not one line that names the file, or loading took
            too much memory or time. The message names the file's seed.
    """
    report = Report()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = subjects(folder)
        for number in range(count):
            label = f"{seed}/{number}"
            rng = random.Random(label)
            kind = rng.choice(list(kinds))
            path = folder / f"mutant{kinds[kind].file.suffix}"
            how = mutate(kinds[kind].file, path, rng)
            try:
                outcome, memory, seconds = attempt(kinds[kind], path)
            except BaseException as error:
                raise AssertionError(f"file {label} ({kind}: {how}): {type(error).__name__}: {error}") from error
            report.outcomes[outcome] += 1
            report.memory = max(report.memory, (memory, f"{label} ({kind}: {how})"))
            report.seconds = max(report.seconds, (seconds, f"{label} ({kind}: {how})"))
    return report


def attempt(subject: Subject, path: Path) -> tuple[str, int, float]:
    """Load ``path``: outcome, bytes of memory at the peak, seconds of processor time. Checks all three."""
    begin = time.process_time()
    with deadline(SECONDS), peak() as memory:
        try:
            loaded = subject.load(path)
        except UserError as error:
            loaded = None
            message = str(error)
    seconds = time.process_time() - begin
    assert memory[0] < 8 * path.stat().st_size + MEMORY, f"took {memory[0] / 1e6:.0f} MB"
    if loaded is None:
        assert path.name in message, message
        assert "\n" not in message, message
        assert len(message) < 800, message
        return "refused", memory[0], seconds
    with deadline(SECONDS), torch.inference_mode():
        subject.run(loaded.network)
    return "works", memory[0], seconds


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise `Hang` in the main thread after so many seconds of processor time."""

    def give_up(*_: object) -> None:
        raise Hang(f"not done in {seconds} s")

    before = signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def peak() -> Iterator[list[int]]:
    """Gives how far the process's resident memory rose within, at its peak; 0 where Linux does not tell."""
    result = [0]
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        yield result
        return
    clear.write_text("5")  # begins a new peak
    before = _resident("VmRSS")
    yield result
    result[0] = _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


HOSTILE: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, 48, 1000, 9000, 10**9, 10**18, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "4", "spynet", "x" * 5000, "\n\0\u202e", None, True, False, {}, {"a": 1}),
    *([], [8], [8000] * 4, [8] * 100, ["mean3"] * 1000, [None], [[[]]], ["DownEncoderBlock2D"] * 3),
)
DAMAGED_JSON = (
    "",
    "null",
    "[]",
    "{",
    "[" * 100_000,
    '{"a":' * 100_000,
    "9" * 100_000,
    '{"channels": NaN}',
    '"\\ud800"',
)
TYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "I32", "U8", "BOOL", "C64", "F4", "nothing", "")
NAMES = ("", "layers.2000000000.", "é", "x" * 1000, "a\nb", "__proto__", "weight", "0")


def mutate(valid: Path, path: Path, rng: random.Random) -> str:
    """Write a changed copy of ``valid`` to ``path``; returns what was changed."""
    structured = _safetensors if valid.suffix == ".safetensors" else _checkpoint
    if rng.random() < 0.7:
        return structured(valid, path, rng)
    data = bytearray(valid.read_bytes())
    how = _bytes(data, rng)
    path.write_bytes(data)
    return how


def _bytes(data: bytearray, rng: random.Random) -> str:
    """Damage ``data``, mostly where the structure lies: at the beginning or the end."""
    span = len(data) if rng.random() < 0.5 else min(len(data), rng.choice((16, 200, 5000, 100_000)))
    place = rng.randrange(span) if rng.random() < 0.6 else len(data) - 1 - rng.randrange(span)
    how = rng.choice(("flip", "truncate", "overwrite", "insert", "remove", "number"))
    if how == "flip":
        for _ in range(rng.choice((1, 2, 8, 64))):
            data[(place + rng.randrange(64)) % len(data)] ^= 1 << rng.randrange(8)
    elif how == "truncate":
        del data[place:]
    elif how == "overwrite":
        length = rng.choice((1, 4, 64, 1000))
        data[place : place + length] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))
    elif how == "insert":
        data[place:place] = rng.choice((bytes(8), b"\xff" * 8, rng.randbytes(100), b"[" * 1000))
    elif how == "remove":
        del data[place : place + rng.choice((1, 8, 1000))]
    else:
        size = rng.choice((1, 2, 4, 8))
        data[place : place + size] = rng.choice((1 << 8 * size - 1, (1 << 8 * size) - 1, 1)).to_bytes(size, "little")
    return f"{how} at {place}"


def _safetensors(valid: Path, path: Path, rng: random.Random) -> str:
    """Change the header, keep the values."""
    data = valid.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, values = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    names = [name for name in header if name != "__metadata__"]
    done = [_edit(header, values, names, rng) for _ in range(rng.choice((1, 1, 1, 2, 4)))]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)
    return ", ".join(done)


def _edit(header: dict[str, Any], values: bytearray, names: list[str], rng: random.Random) -> str:
    name = rng.choice(names)
    other = rng.choice(names)
    entry = header.get(name)
    settings = _settings(header)
    if settings and rng.random() < 0.4:
        return _change_setting(header, settings, rng)
    how = rng.choice(("shape", "type", "rename", "remove", "offsets", "swap", *["value"] * 4))
    if entry is None:
        return "nothing"
    if how == "shape":
        shape = list(entry["shape"])
        rng.shuffle(shape)
        entry["shape"] = rng.choice((shape, shape[1:], [1, *shape], [*shape, 10**9, 0], [0], [], [10**18] * 3, [-1]))
    elif how == "type":
        entry["dtype"] = rng.choice(TYPES)
    elif how == "rename":
        parts = name.split(".")
        parts[rng.randrange(len(parts))] = rng.choice((*NAMES, "2000000000", "1", "7"))
        header[".".join(parts)] = header.pop(name)
    elif how == "remove":
        header.pop(name)
    elif how == "offsets":
        entry["data_offsets"] = rng.choice(
            ([0, 4], [0, 10**18], [-4, 0], (header.get(other) or entry)["data_offsets"], "0")
        )
    elif how == "swap":
        header[name], header[other] = header.get(other), header[name]
    else:
        special = np.float32(rng.choice((np.nan, np.inf, -np.inf, 1e38, 0.5, -3.0, 0.0))).tobytes()
        start = entry["data_offsets"][0]
        if isinstance(start, int) and start >= 0:
            values[start : start + 4] = special
    return f"{how} of {name[:40]!r}"


def _settings(header: dict[str, Any]) -> dict[str, Any] | None:
    try:
        settings = json.loads(header["__metadata__"]["config"])
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None


def _change_setting(header: dict[str, Any], settings: dict[str, Any], rng: random.Random) -> str:
    if rng.random() < 0.1:
        header["__metadata__"] = rng.choice(({}, {"config": rng.choice(DAMAGED_JSON)}, {"config": "{}"}, [], 5))
        return "metadata"
    within = settings
    key = rng.choice(list(settings) or ["new"])
    if isinstance(settings.get(key), dict) and settings[key] and rng.random() < 0.8:
        within = settings[key]
        key = rng.choice(list(within))
    if rng.random() < 0.15:
        within.pop(key, None)
        key = rng.choice(("attention_type", "class_embed_type", "channels", "x" * 300, "__init__"))
    value = rng.choice(HOSTILE)
    within[key] = value
    header["__metadata__"]["config"] = json.dumps(settings)
    return f"{key[:30]}={str(value)[:30] if value != 10**400 else 'huge'}"


def _checkpoint(valid: Path, path: Path, rng: random.Random) -> str:
    """Save another state, or change the archive around it."""
    content = torch.load(valid, weights_only=True)
    old_form = not zipfile.is_zipfile(valid)
    done = [_edit_state(content, rng) for _ in range(rng.choice((1, 1, 2)))]
    torch.save(content, path, _use_new_zipfile_serialization=not old_form)
    if not old_form and rng.random() < 0.3:
        done.append(_edit_archive(path, rng))
    elif old_form and rng.random() < 0.3:
        data = bytearray(path.read_bytes())
        done.append(_bytes(data, rng))
        path.write_bytes(data)
    return ", ".join(done)


def _edit_state(content: dict[str, Any], rng: random.Random) -> str:
    states = [value for value in content.values() if isinstance(value, dict)] + [content]
    state = states[0] if rng.random() < 0.6 else rng.choice(states)
    name = rng.choice(list(state) or ["none"])
    value = state.get(name)
    how = rng.choice(("object", "rename", "remove", "shape", "type", "view", "name", *["value"] * 4))
    if how == "object":
        deep: list[Any] = []
        for _ in range(50):
            deep = [deep]
        state[name] = rng.choice(
            (None, 4, -1, 10**30, "text", [], {}, ["a"] * 10, {"a": {"b": 1}}, 1.5, deep, b"bytes")
        )
    elif how == "rename":
        state[rng.choice(NAMES) + rng.choice((name, ""))] = state.pop(name, None)
    elif how == "remove":
        state.pop(name, None)
    elif how == "name":
        state[rng.choice((5, None, (1, 2), 1.5, True))] = value
    elif isinstance(value, Tensor):
        state[name] = _edit_tensor(value, how, rng)
    return f"{how} of {str(name)[:40]!r}"


def _edit_tensor(value: Tensor, how: str, rng: random.Random) -> Tensor:
    if value.dim() == 0:
        value = value[None]
    if how == "shape":
        return rng.choice((value.flatten(), value[None], value[:0], value[:1], value.mT if value.dim() > 1 else value))
    if how == "type":
        kind = rng.choice((torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64))
        return value.to(kind)
    if how == "view":
        views = (
            lambda: torch.zeros(1).expand(10**6, 10**6),
            lambda: torch.zeros(1).expand(value.shape),
            lambda: value.to_sparse(),
            lambda: value.to("meta"),
            lambda: torch.nn.Parameter(value.float()),
            lambda: torch.zeros(10, *value.shape)[3],
        )
        return rng.choice(views)()
    changed = value.clone().float()
    if changed.numel():
        changed.view(-1)[rng.randrange(changed.numel())] = rng.choice(
            (float("nan"), float("inf"), 1e38, 0.5, -3.0, 0.0)
        )
    return changed


def _edit_archive(path: Path, rng: random.Random) -> str:
    """Copy the archive with one entry changed."""
    source = io.BytesIO(path.read_bytes())
    how = rng.choice(("deflate", "bomb", "shorten", "lengthen", "drop", "twice"))
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        entries = old.infolist()
        chosen = rng.choice(entries)
        for entry in entries:
            data = old.read(entry)
            packing = zipfile.ZIP_STORED
            if entry is chosen:
                if how == "drop":
                    continue
                packing = zipfile.ZIP_DEFLATED if how in ("deflate", "bomb") else packing
                data = {"bomb": bytes(50_000_000), "shorten": data[: len(data) // 2], "lengthen": data * 2}.get(
                    how, data
                )
            new.writestr(zipfile.ZipInfo(entry.filename), data, packing)
        if how == "twice":
            shutil.copyfileobj(io.BytesIO(old.read(chosen)), new.open(f"{chosen.filename}2", "w"))
    return f"{how} {chosen.filename}"
