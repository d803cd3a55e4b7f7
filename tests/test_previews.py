"""What previewers do to a script, through vsjetengine, on which they are built: seek, play, change and load again.

The same sequence in vsview itself is ``python -m scripts.check_preview``.
"""

import json
import subprocess
import sys
from pathlib import Path

from tests.clips import clip_path
from tests.pixels import same

# A previewer has a policy of its own, so it is a process of its own. It tells what was shown, and what was left.
PREVIEWER = """
import gc, hashlib, json, sys, threading
from pathlib import Path
import numpy as np
import psutil
import vapoursynth as vs
from vsengine.policy import Policy, ThreadLocalStore
from vsengine.vpy import load_script

def digest(frame):
    pixels = np.stack([np.asarray(frame[plane]) for plane in range(3)])
    return hashlib.sha256(pixels.tobytes()).hexdigest()

policy = Policy(ThreadLocalStore())
policy.register()
script, values = Path(sys.argv[1]), json.loads(sys.argv[2])
text = script.read_text()

def load(value):
    script.write_text(text.replace("VALUE", str(value)))
    loaded = load_script(str(script), policy)
    loaded.result()
    return loaded

def shown(loaded, numbers, in_flight=1):
    clip = loaded.environment.outputs[0].clip
    found = {}
    with loaded.environment.use():
        waiting = []
        for n in numbers:
            waiting.append((n, clip.get_frame_async(n)))
            if len(waiting) == in_flight:
                n, future = waiting.pop(0)
                with future.result(timeout=120) as frame:
                    found.setdefault(n, digest(frame))
        for n, future in waiting:
            with future.result(timeout=120) as frame:
                found.setdefault(n, digest(frame))
    return found

SEEKS = (1, 2, 5, 14, 13, 6, 17, 0, 11, 10)  # forward, backward, far
told = {"linear": {}, "seeks": {}, "played": {}, "sizes": [], "threads": []}
for value in values:
    loaded = load(value)
    told["linear"][value] = shown(loaded, range(18))
    loaded.dispose()
for value in values * (10 // len(values)):  # ten reloads, each with another value of the argument
    loaded = load(value)
    told["seeks"].setdefault(value, []).append(shown(loaded, SEEKS))
    told["played"].setdefault(value, []).append(shown(loaded, range(4, 12), in_flight=4))
    loaded.dispose()
    del loaded
    gc.collect()
    told["sizes"].append(psutil.Process().memory_info().rss // 1_000_000)
    told["threads"].append(threading.active_count())
policy.unregister()
print(json.dumps(told))
"""

SCRIPT = """import vapoursynth as vs

core = vs.core
clip = core.bs.VideoSource({film!r}, cachemode=0)[:18]
clip = core.resize.Bicubic(clip, width=32, height=32, format=vs.RGBS, matrix_in_s="709")
core.vsvsr.FastReal(clip, model_path={weights!r}, device_index=-1, segment=VALUE, warmup=2).set_output()
"""


def test_what_a_previewer_shows_is_linear_playback_and_reloads_leave_nothing(
    tiny_fastreal: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.vpy"
    text = SCRIPT.format(
        film=str(clip_path("bikes.mp4")),
        weights=str(tiny_fastreal),
    )
    script.write_text(text)
    command = [sys.executable, "-c", PREVIEWER, script, "[5, 7]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    linear = told["linear"]
    assert set(linear) == {"5", "7"}
    assert linear["5"] != linear["7"]  # the change shows
    for value, reference in linear.items():
        runs = [*told["seeks"][value], *told["played"][value]]
        assert len(runs) == 10
        assert {n for run in runs for n in run} >= {"0", "4", "11", "17"}
        for run in runs:
            assert same(run, reference)
    assert len(set(told["threads"])) == 1, told["threads"]
    assert told["sizes"][-1] - told["sizes"][2] < 60, told["sizes"]
