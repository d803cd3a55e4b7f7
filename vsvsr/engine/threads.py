"""How torch's CPU threads wait for one another. Import it before torch.

On Linux torch's threads are libgomp's. At every barrier they spin up to 300,000 times before they sleep, some 15 ms
with the pause instruction of today's processors. With a core each that is quick. Beside other work a thread spins
through its whole time slice while the one it waits for has no core to run on, and a frame takes 20 times as long.

A fixed number of threads spins less: fewer threads would help as well, but convolutions round differently with another
number of threads, and a frame may not depend on the load. How long a thread spins changes no pixel.

libgomp reads the number of spins once, when it is loaded, so there are two cases:

* it is not loaded yet: torch is imported here, with ``SPINS`` in the environment for that long;
* another plugin or the script was first: ``brief_waits`` keeps more threads than there are CPUs, and for as long as
  there are, libgomp spins 100 times only.

Elsewhere (macOS, Windows, Intel's or LLVM's OpenMP), or where the user chose how threads wait, nothing is done.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# 320x180 on two cores, times against the best count: 0 spins 1.20 quiet and 1.00 beside two busy processes, 1,000 spins
# 1.10 and 1.02, 2,000 spins 1.05 and 1.08, 4,000 spins 1.04 and 1.20, 10,000 spins 1.02 and 1.38.
SPINS = 2000

_chosen = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}


def _is_loaded() -> bool:
    """Whether it is too late to tell libgomp anything: some library has brought it."""
    if "torch" in sys.modules:
        return True
    try:
        ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    return True


_open_to_us = sys.platform == "linux" and not _chosen & os.environ.keys()
_spins_by_default = _open_to_us and _is_loaded()

if _open_to_us and not _spins_by_default:
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    try:
        import torch
    finally:
        del os.environ["GOMP_SPINCOUNT"]
else:
    import torch


def _libgomp() -> ctypes.CDLL | None:
    """The OpenMP that torch calls, if it is libgomp: symbols are looked up in torch's own dependencies."""
    library = ctypes.CDLL(torch._C.__file__)
    # Intel's and LLVM's have libgomp's functions as well, but count neither threads nor spins.
    return library if hasattr(library, "GOMP_parallel") and not hasattr(library, "kmp_set_blocktime") else None


@contextmanager
def brief_waits() -> Iterator[None]:
    """Have the teams of this thread spin briefly, until the end of the context.

    Where libgomp was loaded with its default, a team of idle threads is kept meanwhile, one more with those that torch
    uses on this thread than there are CPUs. They sleep; nothing that others see is set.
    """
    libgomp = _libgomp() if _spins_by_default else None
    if libgomp is None:
        yield
        return
    threads = libgomp.omp_get_num_procs() - torch.get_num_threads() + 2
    started, over = threading.Event(), threading.Event()

    def idle() -> None:
        # Any function without effect: what matters is that its threads stay until this one, their master, ends.
        nothing = ctypes.cast(libgomp.omp_get_level, ctypes.c_void_p)
        libgomp.GOMP_parallel(nothing, None, max(threads, 2), 0)
        started.set()
        over.wait()

    master = threading.Thread(target=idle, name="vsvsr idle", daemon=True)
    master.start()
    started.wait()
    try:
        yield
    finally:
        over.set()
        master.join()
