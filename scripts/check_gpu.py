"""On a machine with an NVIDIA GPU: run every test that needs one, then time kernels against PyTorch. About a minute.

Run with the Python of an environment that has the checkout: ``pip install -e ".[cuda,dev]"``. Arguments go to
`scripts.bench.kernels`.
"""

import subprocess
import sys
from pathlib import Path

import torch

from scripts.bench import kernels

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Tests first: a wrong kernel need not be timed."""
    if not torch.cuda.is_available():
        print("check_gpu: PyTorch finds no CUDA device", file=sys.stderr)
        return 1
    print(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), "torch", torch.__version__, flush=True)
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "cuda", "tests"], cwd=ROOT, check=False)
    kernels.main()
    return tests.returncode


if __name__ == "__main__":
    sys.exit(main())
