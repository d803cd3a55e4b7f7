"""A script in vsview, as a user would: seek, play, change an argument and reload ten times, close.

Every picture that vsview shows is compared with that of linear playback in a process of its own. Needs vsview
(``pip install vsview``) and a display, or Xvfb in its place:

    xvfb-run -a python -m scripts.check_preview out/
"""

import argparse
import gc
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import psutil

CLIP = Path(str(resources.files("vsvsr") / "assets" / "bigbuckbunny_320x180.mp4"))
FRAMES = 40
SEGMENT = 8
"""Frames, in the first script; each reload is of one with a longer one."""
RELOADS = 10
MOST_GROWTH = 300
"""Megabytes of resident memory between the third reload and the last."""

SCRIPT = """import vapoursynth as vs

core = vs.core

clip = core.bs.VideoSource({clip!r}, cachemode=0)[:{frames}]
clip = core.std.SetFrameProps(clip, _Matrix=1, _Transfer=1, _Primaries=1)
clip = core.resize.Bicubic(clip, width=96, height=54, format=vs.RGBS)
clip = core.vsvsr.FastReal(clip, segment={segment}, warmup=2, device_index=-1)
core.resize.Bicubic(clip, format=vs.RGB24).set_output()
"""

UNTAGGED = """import vapoursynth as vs
import vsvsr

clip = vs.core.bs.VideoSource({clip!r}, cachemode=0)[:8].resize.Bicubic(width=96, height=54)
clip = clip.std.RemoveFrameProps(["_Matrix", "_Transfer", "_Primaries", "_Range", "_ChromaLocation"])
vsvsr.upscale(clip, device_index=-1).set_output()
"""

LINEAR = """
import hashlib, json, runpy, sys
import numpy as np, vapoursynth as vs
told = []
for script in sys.argv[1:]:
    runpy.run_path(script, run_name="__vapoursynth__")
    frames = vs.get_output(0).clip.frames(close=True)
    pixels = (np.stack([np.asarray(frame[plane]) for plane in range(3)], axis=-1) for frame in frames)
    told.append([hashlib.sha256(picture.tobytes()).hexdigest() for picture in pixels])
print(json.dumps(told))
"""


def write(path: Path, segment: int) -> None:
    path.write_text(SCRIPT.format(clip=str(CLIP), frames=FRAMES, segment=segment), encoding="utf-8")


def linear(folder: Path, segments: range) -> list[list[str]]:
    """Digests of all frames of the script, by segment, each in linear playback, in a process of its own."""
    scripts = [folder / f"{segment}.vpy" for segment in segments]
    for path, segment in zip(scripts, segments, strict=True):
        write(path, segment)
    done = subprocess.run([sys.executable, "-c", LINEAR, *scripts], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def digest(image: Any) -> str:
    """Of the pixels that a QImage shows."""
    from PySide6.QtGui import QImage

    rgb = image.convertToFormat(QImage.Format.Format_RGB888)
    row = 3 * rgb.width()
    data = bytes(rgb.constBits())
    rows = (data[y * rgb.bytesPerLine() : y * rgb.bytesPerLine() + row] for y in range(rgb.height()))
    return hashlib.sha256(b"".join(rows)).hexdigest()


class Viewer:
    """vsview's main window with one script, driven from another thread than Qt's."""

    def __init__(self, window: Any, path: Path) -> None:
        from PySide6.QtCore import Qt
        from vsengine.loops import get_loop

        self.window, self._loop = window, get_loop()
        self._shown: dict[int, str] = {}
        self._arrived = threading.Condition()
        button, loaded = self.on_gui(lambda: window.load_new_script(path))
        self.workspace = button.workspace
        self._last = threading.local()
        playback = self.workspace.playback
        self.on_gui(lambda: playback.frameRendered.connect(self._picture, Qt.ConnectionType.DirectConnection))
        self.on_gui(lambda: playback.timelineCursorChanged.connect(self._number, Qt.ConnectionType.DirectConnection))
        assert loaded.result(timeout=120) == 0
        self.wait(lambda: playback.can_reload, "the script is loaded")

    def _picture(self, image: Any, frame: object, aspect: float) -> None:
        self._last.digest = digest(image)

    def _number(self, n: int) -> None:
        with self._arrived:
            self._shown[int(n)] = self._last.digest
            self._arrived.notify_all()

    def on_gui(self, function: Callable[[], Any]) -> Any:
        return self._loop.from_thread(function).result(timeout=120)

    def wait(self, happened: Callable[[], object], what: str) -> None:
        with self._arrived:
            if not self._arrived.wait_for(happened, timeout=None if happened() else 0.2):
                for _ in range(600):
                    if self._arrived.wait_for(happened, timeout=0.2):
                        return
                raise SystemExit(f"two minutes have passed, but not: {what}")

    def seek(self, n: int) -> None:
        self._shown.pop(n, None)
        self.on_gui(lambda: self.workspace.playback.seek_to_frame_coalesced(n))
        self.wait(lambda: n in self._shown, f"frame {n} is shown")

    def play(self, frames: int) -> None:
        before = self.workspace.playback.state.current_frame
        self.on_gui(self.workspace.playback.toggle_playback)
        self.wait(lambda: self.workspace.playback.state.current_frame >= before + frames, f"{frames} frames are played")
        self.on_gui(self.workspace.playback.stop)

    def reload(self) -> None:
        self.wait(lambda: self.workspace.playback.can_reload, "the last frame is there")
        with self._arrived:
            self._shown.clear()
        assert self.on_gui(self.workspace.reload_content).result(timeout=120) == 0
        self.wait(lambda: self._shown and self.workspace.playback.can_reload, "the reload is shown")

    def compare(self, expected: list[str]) -> int:
        """How many frames have been shown; all must be those of linear playback."""
        with self._arrived:
            wrong = sorted(n for n, found in self._shown.items() if found != expected[n])
            assert not wrong, f"frames {wrong} differ from linear playback"
            return len(self._shown)

    def screenshot(self, path: Path) -> None:
        self.on_gui(lambda: self.window.grab().save(str(path)))


def drive(window: Any, script: Path, pictures: Path, errors: list[str]) -> None:
    """The sequence, and what must hold in it."""
    expected = linear(script.parent, range(SEGMENT, SEGMENT + RELOADS + 1))
    write(script, SEGMENT)
    viewer = Viewer(window, script)
    for n in (1, 2, 5, 20, 19, 12, 39, 0, 31, 30):  # forward, backward, far
        viewer.seek(n)
    viewer.screenshot(pictures / "after_seek.png")
    viewer.play(8)
    print(f"{viewer.compare(expected[0])} frames after seeks and playback are those of linear playback", flush=True)
    sizes = []
    for reload in range(1, RELOADS + 1):
        write(script, SEGMENT + reload)
        viewer.reload()
        viewer.seek(23 + reload)
        count = viewer.compare(expected[reload])
        gc.collect()
        sizes.append(psutil.Process().memory_info().rss // 1_000_000)
        print(f"reload {reload}: {count} frames as in linear playback, {sizes[-1]} MB", flush=True)
    viewer.screenshot(pictures / "after_reload.png")
    script.write_text(UNTAGGED.format(clip=str(CLIP)), encoding="utf-8")
    viewer.reload()
    viewer.seek(5)
    viewer.screenshot(pictures / "untagged.png")
    assert not errors, f"vsview reports: {errors[0]}"
    print("a source without colour tags is shown", flush=True)
    assert sizes[-1] - sizes[2] < MOST_GROWTH, f"memory grows: {sizes}"
    viewer.on_gui(window.close)


def main() -> None:
    """Run it; the exit code says whether all held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder for screenshots")
    pictures = parser.parse_args().pictures
    pictures.mkdir(parents=True, exist_ok=True)
    from PySide6.QtCore import QTimer
    from vsview.app.main import Application, MainWindow
    from vsview.app.plugins.manager import PluginManager

    app = Application(sys.argv[:1], no_settings=True)
    PluginManager.load()
    window = MainWindow()
    window.resize(1280, 800)
    window.show()
    failure: list[BaseException] = []
    reported: list[str] = []
    listener = logging.Handler(logging.ERROR)
    listener.emit = lambda record: reported.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("vsview").addHandler(listener)

    def run() -> None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                drive(window, Path(folder) / "script.vpy", pictures, reported)
        except BaseException as error:
            failure.append(error)
        QTimer.singleShot(0, app, app.quit)

    PluginManager.wait_for_loaded()
    QTimer.singleShot(0, lambda: threading.Thread(target=run, daemon=True).start())
    app.exec()
    if failure:
        raise failure[0]
    print("closed", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
