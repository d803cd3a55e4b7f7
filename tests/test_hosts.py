"""The plugin in the programs that host it: vspipe, Python in all its ends, and a program without Python."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import imageio_ffmpeg
import pytest
import vapoursynth as vs

from tests.clips import clip_path
from vsvsr.filters.generate import ROOT
from vsvsr.filters.registry import FILTERS

SCRIPTS = Path(sysconfig.get_path("scripts"))
PACKAGE = Path(vs.__file__).parent


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([str(part) for part in command], capture_output=True, timeout=120, **options)  # type: ignore[call-overload,no-any-return]


def python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return run(sys.executable, "-c", code, *arguments)


@pytest.fixture
def script(tmp_path: Path, tiny_fastreal: Path) -> Path:
    """A script as users write them, without an import of vsvsr."""
    path = tmp_path / "script.vpy"
    path.write_text(
        f"""
import vapoursynth as vs
core = vs.core
clip = core.bs.VideoSource({str(clip_path("bikes.mp4"))!r}, cachemode=0)[:30]
clip = core.resize.Bicubic(clip, width=48, height=32, format=vs.RGBS, matrix_in_s="709")
clip = core.vsvsr.FastReal(clip, model_path={str(tiny_fastreal)!r}, segment=10, warmup=3)
core.resize.Bicubic(clip, format=vs.YUV420P8, matrix_s="709").set_output()
"""
    )
    return path


def test_vspipe_writes_nothing_but_the_video_to_stdout(script: Path) -> None:
    done = run(SCRIPTS / "vspipe", "-c", "y4m", script, "-")
    assert done.returncode == 0, done.stderr.decode()
    header, _, rest = done.stdout.partition(b"\n")
    assert header.startswith(b"YUV4MPEG2 ")
    assert {b"W192", b"H128"} <= set(header.split())
    frame = len(b"FRAME\n") + 192 * 128 * 3 // 2
    assert len(rest) == 30 * frame
    assert all(rest[n * frame :].startswith(b"FRAME\n") for n in range(30))


def test_a_pipe_from_vspipe_to_ffmpeg_gives_every_frame(script: Path, tmp_path: Path) -> None:
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    video = tmp_path / "out.mkv"
    done = run(
        "sh", "-c", f'"$0" -c y4m "$1" - | "{ffmpeg}" -v error -i - -c:v ffv1 "$2"', SCRIPTS / "vspipe", script, video
    )
    assert done.returncode == 0
    assert (done.stdout, done.stderr.count(b"rror")) == (b"", 0)
    decoded = run(ffmpeg, "-v", "error", "-i", video, "-f", "rawvideo", "-")
    assert len(decoded.stdout) == 30 * 192 * 128 * 3 // 2


def test_an_error_of_the_filter_reaches_the_user_of_vspipe_in_its_own_words(tmp_path: Path) -> None:
    path = tmp_path / "wrong.vpy"
    path.write_text(
        "import vapoursynth as vs\nvs.core.std.BlankClip(format=vs.RGBS).vsvsr.FastReal(segment=-1).set_output()\n"
    )
    done = run(SCRIPTS / "vspipe", "-c", "y4m", path, "-")
    assert done.returncode != 0
    assert b"FastReal: segment=-1 is not possible; allowed: 0 (never restart) or more" in done.stderr
    assert done.stdout == b""


START = """
import sys
import vapoursynth as vs
core = vs.core
core.num_threads = 8
clip = core.std.BlankClip(width=48, height=32, format=vs.RGBS, length=200, color=[0.2, 0.5, 0.7])
output = core.vsvsr.FastReal(clip, model_path=sys.argv[1], device_index=-1, segment=50)
"""

IN_FLIGHT = "futures = [output.get_frame_async(n) for n in range(100)]; "
ENDS = {
    "after the last frame": "[output.get_frame(n).close() for n in range(5)]",
    "with frames in flight": IN_FLIGHT,
    "with frames in flight and the clip gone": IN_FLIGHT + "del output, clip",
    "with an exception while frames are in flight": IN_FLIGHT + "1 / 0",
    "with sys.exit while frames are in flight": IN_FLIGHT + "sys.exit(0)",
    "while the device's thread is still at work": (
        "output.get_frame(0).close(); import torch; from vsvsr.engine.worker import worker_of; "
        "worker_of(torch.device('cpu')).post(lambda: [torch.ones(300, 300) @ torch.ones(300, 300) for _ in range(500)])"
    ),
    "with a thread that waits for a frame": (
        IN_FLIGHT + "import threading; threading.Thread(target=lambda: futures[3].result()).start()"
    ),
}


@pytest.mark.parametrize("end", sorted(ENDS))
def test_the_interpreter_ends_cleanly(end: str, tiny_fastreal: Path) -> None:
    done = python(START + ENDS[end], tiny_fastreal)
    assert done.returncode == (1 if "exception" in end else 0), done.stderr.decode()
    assert b"Fatal" not in done.stderr
    assert b"terminate called" not in done.stderr


def test_environments_one_after_the_other_give_the_same_pixels(tiny_fastreal: Path) -> None:
    code = """
import gc, sys
import vapoursynth as vs

class Policy(vs.EnvironmentPolicy):
    def on_policy_registered(self, api): self.api, self.current = api, None
    def on_policy_cleared(self): self.current = None
    def get_current_environment(self): return self.current
    def set_environment(self, environment): self.current, before = environment, self.current; return before

policy = Policy()
vs.register_policy(policy)

def once():
    environment = policy.api.create_environment()
    policy.set_environment(environment)
    core = vs.core.core
    clip = core.std.BlankClip(width=48, height=32, format=vs.RGBS, length=40, color=[0.2, 0.5, 0.7])
    output = core.vsvsr.FastReal(clip, model_path=sys.argv[1], device_index=-1, segment=10, warmup=3)
    futures = [output.get_frame_async(n) for n in range(40)]
    frames = [future.result() for future in futures]
    data = [bytes(frame[0]) for frame in frames]
    for frame in frames:
        frame.close()
    del frames, futures, frame
    del core, clip, output
    gc.collect()
    policy.api.destroy_environment(environment)
    policy.set_environment(None)
    return data

results = [once() for _ in range(4)]
assert len(results[0]) == 40
assert all(result == results[0] for result in results)
print("same")
"""
    done = python(code, tiny_fastreal)
    assert (done.returncode, done.stdout.strip()) == (0, b"same"), done.stderr.decode()


def test_counters_are_logged_at_debug_level_when_the_filter_goes(tiny_fastreal: Path) -> None:
    code = (
        START
        + """
import gc
import logging
logging.basicConfig(level=logging.DEBUG)
for n in range(3): output.get_frame(n).close()
del output
gc.collect()
"""
    )
    done = python(code, tiny_fastreal)
    assert done.returncode == 0, done.stderr.decode()
    assert b"FastReal: steps=3 warmup_steps=0 renders=3 seeks=0 checkpoint_hits=0 replays=0" in done.stderr


def test_the_collector_may_free_a_filter_on_the_device_thread(tiny_fastreal: Path) -> None:
    code = (
        START
        + """
import gc
import torch
from vsvsr.engine.worker import worker_of

gc.disable()
cycle = [output]
cycle.append(cycle)
output.get_frame(3).close()
del output, cycle
worker_of(torch.device("cpu")).run(gc.collect)
worker_of(torch.device("cpu")).run(gc.collect)  # the session, posted by the filter's end, is freed before this
from vsvsr.streaming import RecurrentSession
assert not [thing for thing in gc.get_objects() if isinstance(thing, RecurrentSession)]
print("freed")
"""
    )
    done = python(code, tiny_fastreal)
    assert (done.returncode, done.stdout.strip()) == (0, b"freed"), done.stderr.decode()


def test_a_filter_that_nobody_uses_any_more_is_freed_at_once(tiny_fastreal: Path) -> None:
    code = (
        START
        + """
import gc, time
from vsvsr.streaming import RecurrentSession

for n in range(3): output.get_frame(n).close()
del output
gc.collect()
for _ in range(200):
    if not [thing for thing in gc.get_objects() if isinstance(thing, RecurrentSession)]:
        print("freed")
        break
    time.sleep(0.05)
"""
    )
    done = python(code, tiny_fastreal)
    assert (done.returncode, done.stdout.strip()) == (0, b"freed"), done.stderr.decode()


def test_an_exception_inside_the_plugin_becomes_the_filter_s_error(tiny_fastreal: Path) -> None:
    code = (
        START
        + """
from vsvsr import bridge

class Endless:
    def __len__(self): return 2**62
    def __getitem__(self, index): return 0

# What makes the C++ standard library throw inside the plugin.
bridge.FilterInstance.advance = lambda *arguments: Endless()
bridge.FilterInstance.counters = lambda self: [()]
bridge.open_filter = lambda *arguments: ()
bridge.version = lambda: [()]
for call in (
    lambda: output.get_frame(0), lambda: core.vsvsr.Stats(output), lambda: core.vsvsr.FastReal(clip), core.vsvsr.Version
):
    try:
        call()
    except vs.Error as error:
        print(str(error).split(":")[0])
"""
    )
    done = python(code, tiny_fastreal)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split() == ["FastReal", "Stats", "FastReal", "Version"]
    assert b"terminate called" not in done.stderr


def test_a_host_without_python_loads_the_plugin_and_gets_a_clear_error(tmp_path: Path) -> None:
    source = ROOT / "scripts" / "host.c"
    host = tmp_path / "host"
    library = next(PACKAGE.glob("libvapoursynth.*"))
    built = run(
        os.environ.get("CC", "cc"), source, "-o", host, f"-I{vs.get_include()}", library, f"-Wl,-rpath,{PACKAGE}"
    )
    assert built.returncode == 0, built.stderr.decode()
    done = run(host, "FastReal", env={**os.environ, "LD_LIBRARY_PATH": str(PACKAGE)})
    assert done.returncode == 0, done.stderr.decode()
    *functions, error = done.stdout.decode().splitlines()
    assert {function.split("(")[0] for function in functions} == {*FILTERS, "Stats", "Version"}
    assert error == (
        "FastReal: this process has no Python 3.12 or newer, which vsvsr needs; use python, vspipe or an editor"
    )


def test_the_library_names_no_function_of_python_it_would_need_at_load() -> None:
    library = next((PACKAGE / "plugins" / "vsvsr").glob("vsvsr.*"))
    assert b"PyGILState_Ensure" in library.read_bytes()
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1], mode=2)"  # RTLD_NOW: every symbol is resolved
    undefined = run("nm", "-D", "--undefined-only", library)
    assert undefined.returncode == 0
    assert not [line for line in undefined.stdout.decode().split() if line.startswith(("Py", "_Py"))]
    assert python(code, library).returncode == 0


def test_version_names_torch_devices_and_the_weights_folder() -> None:
    version = vs.core.vsvsr.Version()
    assert set(version) == {"version", "torch", "devices", "weights"}
    assert "cpu" in str(version["devices"])


def test_stats_of_a_clip_that_no_vsvsr_filter_made_is_refused() -> None:
    clip = vs.core.std.BlankClip(format=vs.RGBS)
    with pytest.raises(vs.Error, match=r"^Stats: the clip is not the direct output of a vsvsr filter; give that$"):
        vs.core.vsvsr.Stats(clip)
