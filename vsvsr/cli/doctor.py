"""``vsvsr doctor``: what is installed, what is wrong, and the line that mends it."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import list2cmdline
from typing import Annotated

import typer

from vsvsr.cli import cards, mend
from vsvsr.errors import UserError
from vsvsr.filters.registry import FILTERS

REINSTALL = "pip install --force-reinstall --no-deps vsvsr"

TORCH_WITH_CUDA = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130"

app = typer.Typer()


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at.
        state: what was found.
        remedy: what mends it, where something is wrong: a line to type, which `mend` can run, or words.
    """

    subject: str
    state: str
    remedy: str | None = None

    @property
    def command(self) -> str | None:
        """The remedy if it is a line to type."""
        return self.remedy if self.remedy is not None and self.remedy.split()[0] in mend.MODULES else None


@app.command()
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Ask for each such line whether to run it.")] = False,
) -> None:
    """Show versions, devices, the plugin and the weights; say what is wrong and how to mend it."""
    findings = [finding for check in CHECKS for finding in _guarded(check)]
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        typer.echo(f"{'ok ' if finding.remedy is None else 'BAD'}  {finding.subject:{width}}  {finding.state}")
        if finding.remedy is not None:
            typer.echo(f"{'':{width + 7}}mend: {finding.remedy}")
    commands = dict.fromkeys(finding.command for finding in findings if finding.command is not None)
    chosen = [command for command in commands if fix and typer.confirm(f"run {command}?")]
    if chosen:
        sys.stdout.flush()
        words = [sys.executable, "-m", mend.__name__, *chosen]
        # Windows joins the words with spaces and leaves quotes to the caller.
        os.execv(sys.executable, [list2cmdline([word]) for word in words] if sys.platform == "win32" else words)
    if any(finding.remedy is not None for finding in findings):
        raise typer.Exit(1)


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; a check that fails in a way it did not foresee is a finding, too."""
    try:
        yield from check()
    except Exception as error:  # a broken installation raises anything; the report goes on
        subject = check.__name__.strip("_").replace("_", " ")
        yield Finding(subject, _one_line(error), REINSTALL)


def _versions() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("vsvsr", importlib.metadata.version("vsvsr"))
    import vapoursynth as vs

    yield Finding("vapoursynth", str(vs.core.core_version))


def _torch() -> Iterator[Finding]:
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # besides ImportError: OSError for a missing library, RuntimeError for a wrong one
        yield Finding("torch", _one_line(error), "pip install --force-reinstall torch")
        return
    yield Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} CPU threads")
    from vsvsr.engine.device import gpus
    from vsvsr.ops.dispatch import kernel_problem

    found = list(gpus())
    if not found:
        yield _without_gpu(torch.__version__, built_for_gpus=bool(torch.version.cuda or torch.version.hip))
    for gpu in found:
        if gpu.problem is not None:
            yield Finding("device", gpu.problem, "a newer driver, or the torch for this one: pytorch.org/get-started")
            continue
        device = torch.device("cuda", gpu.index)
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        yield Finding("device", f"{gpu.index}: {gpu.name}, {memory:.1f} GiB")
        problem = kernel_problem(device)
        state = "they run" if problem is None else f"{problem}; PyTorch runs in their place, more slowly"
        if problem is not None and torch.cuda.get_device_capability(device) >= (8, 0):
            state += _missing_for_kernels()
        yield Finding(f"kernels on {gpu.index}", state)


def _without_gpu(version: str, *, built_for_gpus: bool) -> Finding:
    """What it means that torch sees no GPU, by the cards that are here."""
    from vsvsr.engine.device import untried_gpus

    here = cards.vendors()
    if "NVIDIA" in here and built_for_gpus:
        return Finding(
            "device",
            f"CPU only: there is an NVIDIA card, but torch {version} finds no working driver for it",
            "install the driver from nvidia.com/drivers",
        )
    if "NVIDIA" in here:
        return Finding("device", f"CPU only: there is an NVIDIA card, but torch {version} has no CUDA", TORCH_WITH_CUDA)
    if "AMD" in here and not built_for_gpus and sys.platform == "linux":
        # Not a fault: processors have such a graphics unit, too.
        return Finding(
            "device",
            "CPU only; for an AMD card take PyTorch's ROCm build (pytorch.org/get-started); nobody has tried it here",
        )
    kind, count = untried_gpus()
    if count:
        return Finding("device", f"CPU only, unless device_index=0 asks for torch's {kind}; nobody has tried it here")
    unused = sorted(here - {"NVIDIA"})
    others = f"; vsvsr does not use graphics by {' and '.join(unused)}" if unused else ""
    return Finding("device", f"CPU only{others}")


def _missing_for_kernels() -> str:
    """What Triton needs at run time and this machine lacks."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    missing = ["a C compiler"] * (not compiler) + [f"Python's headers ({header})"] * (not header.is_file())
    return f"; missing: {' and '.join(missing)}" if missing else ""


def _onnx() -> Iterator[Finding]:
    """Wanted by those only who choose that back end."""
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None:
        yield Finding("onnxruntime", 'not installed; only backend="onnx" needs it: pip install "vsvsr[onnx]"')
        return
    try:
        from vsvsr.engine.onnx import choose_provider

        yield Finding("onnxruntime", choose_provider(None).described.removeprefix("onnxruntime "))
    except (UserError, ImportError, OSError) as error:  # of torch too, which has a finding of its own
        yield Finding("onnxruntime", f"not usable: {_one_line(error)}")


def _plugin() -> Iterator[Finding]:
    import vapoursynth as vs

    if hasattr(vs.core, "vsvsr"):
        try:
            version = vs.core.vsvsr.Version()["version"]
        except vs.Error as error:
            yield Finding("plugin", f"loaded, but: {_one_line(error)}", f"once torch is ok: {REINSTALL}")
            return
        filters = [f.name for f in vs.core.vsvsr.functions() if f.return_signature.startswith("clip:")]
        yield Finding("plugin", f"{_text(version)}, filters {', '.join(filters)}")
        return
    folder = Path(vs.__file__).parent / "plugins" / "vsvsr"
    libraries = [path for path in folder.glob("vsvsr.*") if path.suffix in (".so", ".dylib", ".dll")]
    if not libraries:
        yield Finding("plugin", f"not in {folder}", REINSTALL)
        return
    try:
        vs.core.std.LoadPlugin(str(libraries[0]))
    except vs.Error as error:
        yield Finding("plugin", _one_line(error), REINSTALL)
    else:
        yield Finding("plugin", f"loads only when asked; {folder / 'manifest.vs'} does not name it", REINSTALL)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _source_filter() -> Iterator[Finding]:
    import vapoursynth as vs

    if hasattr(vs.core, "bs"):
        yield Finding("source filter", f"BestSource {vs.core.bs.version.major}")
    else:
        # Its newest needs a newer VapourSynth than the oldest that the filters run on, which pip is not told.
        yield Finding("source filter", "BestSource is not loaded", "pip install -U vapoursynth vapoursynth-bestsource")


def _vspipe() -> Iterator[Finding]:
    """vspipe finds this Python only after ``vapoursynth config``; a script of one frame shows whether it does."""
    import vapoursynth as vs

    vspipe = Path(vs.__file__).with_name("vspipe.exe" if sys.platform == "win32" else "vspipe")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "one_frame.vpy"
        script.write_text("import vapoursynth as vs\nvs.core.std.BlankClip(length=1).set_output()\n", encoding="utf-8")
        tried = _run(vspipe, "--info", script, "-", timeout=60)
    if tried.returncode == 0:
        yield Finding("vspipe", str(vspipe))
    else:
        yield Finding("vspipe", _one_line(tried.stderr), "vapoursynth config")


def _ffmpeg() -> Iterator[Finding]:
    from vsvsr.video.ffmpeg import find_ffmpeg

    try:
        ffmpeg = find_ffmpeg()
    except UserError as error:
        yield Finding("ffmpeg", str(error), "pip install --force-reinstall imageio-ffmpeg")
        return
    banner = _run(ffmpeg, "-version", check=True).stdout.split()
    encoders = _run(ffmpeg, "-hide_banner", "-encoders", check=True).stdout
    if "libx264" in encoders:
        yield Finding("ffmpeg", f"{banner[2]} ({ffmpeg})")
    else:
        yield Finding(
            "ffmpeg",
            f"{ffmpeg} has no encoder libx264",
            "take it off the path, or choose another --encoder",
        )


def _weights() -> Iterator[Finding]:
    from vsvsr import weights

    for row in weights.MANIFEST:
        subject = f"weights {row.name}"
        if row.origin:
            missing = f"not added; only {row.model} needs them: get {row.origin}, then run: vsvsr weights add FILE"
            yield Finding(subject, "added" if weights.present(row) else missing)
            continue
        if not row.shipped and not weights.present(row):
            yield Finding(subject, f"not installed; {row.model} needs them only when asked to")
            continue
        try:
            weights.verify(row.name)
        except UserError as error:
            yield Finding(subject, str(error), REINSTALL if row.shipped else f"vsvsr weights install {row.name}")
        else:
            yield Finding(subject, f"{'shipped' if row.shipped else 'installed'}, as published")


def _optional_packages() -> Iterator[Finding]:
    for name, definition in FILTERS.items():
        missing = [package for package in definition.packages if importlib.util.find_spec(package) is None]
        if missing:
            remedy = f'pip install "vsvsr[{name.lower()}]"'
            yield Finding(name, f"{' and '.join(missing)} not installed; only {name} needs them: {remedy}")
        elif definition.packages:
            versions = [f"{package} {importlib.metadata.version(package)}" for package in definition.packages]
            yield Finding(name, ", ".join(versions))


def _run(*command: str | Path, check: bool = False, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program; what it writes is read as UTF-8, whatever the locale."""
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=check, timeout=timeout
    )


def _one_line(error: Exception | str) -> str:
    """The last line that says something: Python and vspipe put the reason last."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


CHECKS = (_versions, _torch, _onnx, _plugin, _source_filter, _vspipe, _ffmpeg, _weights, _optional_packages)
