"""The smallest kernel, which shows whether Triton can launch one."""

import torch
import triton
import triton.language as tl


@triton.jit
def answer_kernel(result):
    """``result[0] = 42``; int32."""
    tl.store(result, 42)


def answer(device: torch.device) -> int:
    """42, if Triton compiles and launches on the device, which must be the current one."""
    result = torch.zeros(1, dtype=torch.int32, device=device)
    answer_kernel[(1,)](result)
    return int(result.item())
