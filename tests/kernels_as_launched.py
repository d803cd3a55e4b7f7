"""Every kernel compiled as its launcher specialises it on a GPU of a compute capability, on a machine without one.

``python -m tests.kernels_as_launched 90`` runs the networks with a driver that only pretends to be there, and compiles
what they launch. Launchers know more than a signature: integers that are 1 become constants, pointers and integers that
16 divides are told so. Run by test_kernels.py in a process of its own: the driver stays. Prints what compiled, and
exits with 1 if something did not.
"""

import importlib
import pkgutil
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from vsvsr.triton_kernels.ahead_of_time import SHARED_MEMORY

from vsvsr import ops
from vsvsr.models.fastreal import COMPACT, FastRealConfig, FastRealVSR
from vsvsr.models.fastreal.config import PLAIN
from vsvsr.models.mia import MIAVSR
from vsvsr.models.skipvsr import SkipVSR

DTYPES = (torch.float32, torch.float16)


class Driver:
    """What Triton asks a driver for before it launches."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)
        self.utils = self

    def get_device_properties(self, device: int) -> dict[str, int]:
        shared = SHARED_MEMORY[self._target.arch]
        return {"max_shared_mem": shared, "multiprocessor_count": 100, "max_num_regs": 65536, "warpSize": 32}

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


class Launches:
    """Compiles in place of launching, and counts."""

    def __init__(self, capability: int) -> None:
        self.compiled: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        driver.set_active(Driver(capability))
        launch = JITFunction.run

        def run(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **more: Any) -> None:
            try:
                compiled = launch(kernel, *arguments, grid=grid, warmup=True, **more)
                assert compiled.metadata.shared <= SHARED_MEMORY[capability], "too much shared memory"
            except Exception as error:
                self.failed[f"{kernel.__name__}: {type(error).__name__}: {error}"] += 1
            else:
                self.compiled[kernel.__name__] += 1

        JITFunction.run = run
        for module in pkgutil.iter_modules(ops.__path__):
            found = importlib.import_module(f"{ops.__name__}.{module.name}")
            if hasattr(found, "runs_kernels"):
                found.runs_kernels = lambda *tensors: True


def placed[Network: nn.Module](network: Network, dtype: torch.dtype) -> Network:
    """As filters place it: ``half()`` leaves in fp32 what has to stay so."""
    network.eval().requires_grad_(False)
    return network.half() if dtype == torch.float16 else network


def fastreal(config: FastRealConfig, height: int, width: int, dtype: torch.dtype) -> None:
    network = placed(FastRealVSR(config), dtype).to(memory_format=torch.channels_last)
    frame = torch.rand(1, 3, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
    state = network.propagate(frame, frame, network.propagate(frame, None, None))
    network.render(state, frame, torch.empty(3, network.scale * height, network.scale * width, dtype=dtype).unbind())


def skip(dtype: torch.dtype, **settings: Any) -> None:
    network = placed(SkipVSR(blocks=2, threshold=0.5, **settings), dtype)
    frames = [torch.rand(1, 3, 70, 90).to(dtype) for _ in range(3)]
    for write in network.chunk(frames, range(1, 3)):
        write(torch.empty(3, 280, 360).unbind())


def mia(dtype: torch.dtype, height: int, width: int, *, masks: bool) -> None:
    network = placed(MIAVSR(120, (2,), (6,), 16, use_mask=masks), dtype)
    frames = [torch.rand(1, 3, height, width).to(dtype) for _ in range(3)]
    for index, features in enumerate(network.features(frames, range(3))):
        network.render(features, frames[index], torch.empty(3, 4 * height, 4 * width).unbind())


@torch.inference_mode()
def main(capability: int) -> int:
    """Run the networks; the return value is the exit status."""
    launches = Launches(capability)
    for dtype in DTYPES:
        for config in (COMPACT, PLAIN, FastRealConfig(rb1_blocks=1, rb2_blocks=1, fast_sca=True)):
            for height, width in ((33, 40), (48, 64)):
                fastreal(replace(config, rb1_blocks=1, rb2_blocks=1), height, width, dtype)
        for settings in ({}, {"hold": False}, {"mode": "patch"}):
            skip(dtype, **settings)
        mia(dtype, 64, 72, masks=True)
        mia(dtype, 16, 16, masks=False)
    for failure in launches.failed:
        print("failed:", failure)
    for name, count in sorted(launches.compiled.items()):
        print(name, count)
    return bool(launches.failed)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
