"""Compile the kernels for any GPU, on a machine without one: for the tests and the kernel report."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import (
    block_skip,
    finish_convolution,
    flow_correction,
    flow_warp,
    grey_pyramid,
    hidden_state_attention,
    lucas_kanade,
    masked_window_attention,
)

SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
"""Largest shared memory of a block in bytes, by compute capability."""

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

TENSOR_CORES = r"\b(?:HMMA|HGMMA|IMMA|QGMMA|UTCHMMA|UTCQMMA)\b"
"""Tensor-core instructions of all generations."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Resources of one kernel on one GPU.

    Attributes:
        registers: of a thread.
        stack: bytes of local memory of a thread, which holds spilled registers.
        shared: bytes of shared memory of a block.
    """

    registers: int
    stack: int
    shared: int


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A kernel as its launcher would specialise it.

    Attributes:
        kernel: the jitted function.
        pointers: element type of each pointer.
        constants: values of constexpr arguments, and 1 for strides that are 1.
        floats: names of fp32 scalars.
        options: warps and stages.
    """

    kernel: Any
    pointers: Mapping[str, str]
    constants: Mapping[str, int | bool | float]
    floats: tuple[str, ...] = ()
    options: Mapping[str, int] = field(default_factory=dict)

    def compile(self, target: GPUTarget) -> Any:
        """Compile for a GPU: Triton's own object, with the code in ``asm``."""
        signature, aligned = {}, {}
        for place, name in enumerate(self.kernel.arg_names):
            if name in self.constants:
                signature[name] = "constexpr"
            elif name in self.pointers:
                signature[name] = "*" + self.pointers[name]
                aligned[(place,)] = [["tt.divisibility", 16]]
            else:
                signature[name] = "fp32" if name in self.floats else "i32"
        source = ASTSource(self.kernel, signature, dict(self.constants), aligned)
        return triton.compile(source, target=target, options=dict(self.options))

    def usage(self, capability: int) -> Usage:
        """Resources on an NVIDIA GPU of ``capability``, such as 86."""
        compiled = self.compile(GPUTarget("cuda", capability, 32))
        registers, stack = resources(compiled.asm["cubin"])
        return Usage(registers=registers, stack=stack, shared=compiled.metadata.shared)

    def tensor_core_instructions(self, capability: int) -> int:
        """Number of tensor-core instructions in the machine code; disassembling takes a second."""
        return len(re.findall(TENSOR_CORES, self.compile(GPUTarget("cuda", capability, 32)).asm["sass"]))


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory of the one kernel in a cubin, from the tool that ships with Triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [tool, "--dump-resource-usage", path]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", listing)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def compile_cuda_c(source: str, capability: int) -> Usage:
    """Resources of CUDA C without headers on an NVIDIA GPU, from NVIDIA's run-time compiler (NVRTC).

    Raises:
        RuntimeError: the compiler's messages.
    """
    from cuda.bindings import nvrtc

    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], [])
    failure, *_ = nvrtc.nvrtcCompileProgram(program, 1, [f"--gpu-architecture=sm_{capability}".encode()])
    if failure != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        messages = bytes(nvrtc.nvrtcGetProgramLogSize(program)[1])
        nvrtc.nvrtcGetProgramLog(program, messages)
        raise RuntimeError(messages.decode())
    cubin = bytes(nvrtc.nvrtcGetCUBINSize(program)[1])
    nvrtc.nvrtcGetCUBIN(program, cubin)
    registers, stack = resources(cubin)
    return Usage(registers=registers, stack=stack, shared=0)


def hidden_state_attention_launch(dtype: str, *, channels: int = 64, channels_last: bool = False) -> Launch:
    """Over a pool of five 5x5 filters."""
    module = hidden_state_attention
    maps = ("query", "key", "value", "result")
    constants = {f"{name}_{'c' if channels_last else 'x'}": 1 for name in maps}
    constants |= {"KEY_CHANNELS": channels, "VALUE_CHANNELS": channels, "MEMBERS": 5, "PADDED_MEMBERS": 8, "SIDE": 5}
    return Launch(
        kernel=module.hidden_state_attention_kernel,
        pointers=dict.fromkeys(maps, dtype) | {"filters": "fp32"},
        constants=constants | {"ROWS": module.ROWS, "COLUMNS": module.COLUMNS, "CHANNELS": module.CHANNELS},
        floats=("scale",),
        options={"num_warps": module.WARPS},
    )


def masked_window_attention_launch(dtype: str) -> Launch:
    """Six heads of 20 channels over three frames, shifted."""
    module = masked_window_attention
    maps = ("query", "key_value", "key_value_bias", "position_bias", "result")
    queries, warps = module.blocks(DTYPES[dtype])
    constants = {"CHANNELS": 120, "HEADS": 6, "FRAMES": 3, "WINDOW": 8, "SHIFT": 4}
    return Launch(
        kernel=module.masked_window_attention_kernel,
        pointers=dict.fromkeys(maps, dtype) | dict.fromkeys(("order", "counts", "rows"), "i32"),
        constants=constants | {"QUERIES": queries, "PADDED_POSITIONS": 64, "PADDED_DIM": 32},
        floats=("scale",),
        options={"num_warps": warps, "num_stages": module.STAGES},
    )


def block_skip_launch(dtype: str, *, first: bool = True, channels: int = 64) -> Launch:
    """One of the two convolutions, on tiles of 16."""
    sizes = block_skip.blocks(channels, DTYPES[dtype])
    options = {name: sizes.pop(name) for name in ("num_warps", "num_stages")}
    return Launch(
        kernel=block_skip.tile_convolution_kernel,
        pointers=dict.fromkeys(("source", "weight", "bias", "result"), dtype) | {"tiles": "i64", "count": "i64"},
        constants={"CHANNELS": channels, "TILE": 16, "FIRST": first, **sizes},
        options=options,
    )


def choose_tiles_launch(dtype: str = "fp32") -> Launch:
    """Whatever the type of the maps."""
    return Launch(
        kernel=block_skip.choose_tiles_kernel,
        pointers={"active": "u8", "numbers": "i64", "count": "i64"},
        constants={"BLOCK": block_skip.BLOCK},
        options={"num_warps": block_skip.WARPS},
    )


def flow_warp_launch(dtype: str, *, channels: int = 64, border: bool = False, channels_last: bool = True) -> Launch:
    """By an fp32 flow."""
    maps = ("source", "result")
    constants = {f"{name}_{'c' if channels_last else 'x'}": 1 for name in maps} | {"flow_x": 1}
    return Launch(
        kernel=flow_warp.flow_warp_kernel,
        pointers=dict.fromkeys(maps, dtype) | {"flow": "fp32"},
        constants=constants | {"SOURCE_CHANNELS": channels, "BORDER": border, **flow_warp.blocks(channels)},
        options={"num_warps": flow_warp.WARPS},
    )


def grey_pyramid_launch(dtype: str, *, channels_last: bool = True) -> Launch:
    """Of frames in ``dtype``, five levels."""
    frames = ("reference", "support")
    return Launch(
        kernel=grey_pyramid.grey_pyramid_kernel,
        pointers=dict.fromkeys(frames, dtype) | {"result": "fp32"},
        constants={f"{name}_{'c' if channels_last else 'x'}": 1 for name in frames}
        | {"LEVELS": 5, "SIDE": grey_pyramid.SIDE},
        options={"num_warps": grey_pyramid.WARPS},
    )


def lucas_kanade_launch(dtype: str = "fp32", *, start: int = 2) -> Launch:
    """From a flow of the same size, or of half of it; always in fp32."""
    module = lucas_kanade
    return Launch(
        kernel=module.lucas_kanade_kernel,
        pointers=dict.fromkeys(("reference", "support", "flow", "result"), "fp32"),
        constants={"START": start, "NOISE": 3e-4, "LIMIT": 1.5, "ROWS": module.ROWS, "COLUMNS": module.COLUMNS},
        options={"num_warps": module.WARPS},
    )


def flow_correction_launch(dtype: str = "fp32", *, layer: int) -> Launch:
    """One of the three convolutions; always in fp32."""
    module = flow_correction
    maps = ("reference", "support", "flow", "source", "weight", "bias", "result")
    return Launch(
        kernel=module.flow_correction_kernel,
        pointers=dict.fromkeys(maps, "fp32"),
        constants={"weight_i": 1, "LAYER": layer, "CHANNELS": 16, "SLOPE": 0.1, "PIXELS": module.PIXELS},
        options={"num_warps": module.WARPS, "num_stages": module.STAGES},
    )


def finish_convolution_launch(dtype: str, *, activation: int = 3) -> Launch:
    """With a residual, channels last."""
    return Launch(
        kernel=finish_convolution.finish_convolution_kernel,
        pointers=dict.fromkeys(("maps", "bias", "slopes", "residual"), dtype),
        constants={"run": 1, "ACTIVATION": activation, "ADDS": True, "SIZE": finish_convolution.SIZE},
        floats=("slope",),
        options={"num_warps": finish_convolution.WARPS},
    )


LAUNCHES = {
    "hidden_state_attention": hidden_state_attention_launch,
    "masked_window_attention": masked_window_attention_launch,
    "block_skip, first convolution": block_skip_launch,
    "block_skip, second convolution": lambda dtype: block_skip_launch(dtype, first=False),
    "block_skip, choice of tiles": choose_tiles_launch,
    "flow_warp": flow_warp_launch,
    "grey_pyramid": grey_pyramid_launch,
    "lucas_kanade": lucas_kanade_launch,
    "flow_correction, first convolution": partial(flow_correction_launch, layer=0),
    "flow_correction, second convolution": partial(flow_correction_launch, layer=1),
    "flow_correction, third convolution": partial(flow_correction_launch, layer=2),
    "finish_convolution": finish_convolution_launch,
}
"""Every kernel by name, at the size of the published networks: a function of the type of the maps."""
