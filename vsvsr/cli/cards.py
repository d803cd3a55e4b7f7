"""Graphics cards of this machine, asked of the operating system: a PyTorch without GPU support sees none."""

import platform
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_VENDORS = {"10de": "NVIDIA", "1002": "AMD", "8086": "Intel"}
"""By PCI vendor."""

_DEVICES = Path("/sys/bus/pci/devices")
_WSL = Path("/usr/lib/wsl/lib/libcuda.so.1")
_DISPLAY = "0x03"
"""How PCI classes of display controllers begin."""


def vendors() -> set[str]:
    """Whose graphics cards are here: NVIDIA, AMD, Intel, Apple."""
    if sys.platform == "darwin":
        return {"Apple"} if platform.machine() == "arm64" else set()
    found = _windows() if sys.platform == "win32" else _linux()
    return {_VENDORS[vendor] for vendor in found if vendor in _VENDORS}


def _linux() -> set[str]:
    found = {"10de"} if _WSL.exists() else set()
    for device in _DEVICES.glob("*"):
        with suppress(OSError):
            if (device / "class").read_text().startswith(_DISPLAY):
                found.add((device / "vendor").read_text().strip().removeprefix("0x"))
    return found


def _windows() -> set[str]:
    question = "(Get-CimInstance Win32_VideoController).PNPDeviceID"
    with suppress(OSError, subprocess.TimeoutExpired):
        told = subprocess.run(
            ["powershell", "-NoProfile", "-Command", question], capture_output=True, text=True, check=False, timeout=60
        )
        return {vendor.lower() for vendor in re.findall(r"VEN_([0-9A-Fa-f]{4})", told.stdout)}
    return set()
