"""``vsvsr doctor`` beside cards that torch does not see, and ``--fix``."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from vsvsr.cli import cards, doctor, mend

Monkey = pytest.MonkeyPatch

CARDS = {
    "NVIDIA": ("0x10de", "0x030000"),
    "AMD": ("0x1002", "0x038000"),
    "Intel": ("0x8086", "0x030000"),
}


def bus(folder: Path, *devices: tuple[str, str]) -> Path:
    """A folder of PCI devices as Linux shows them, from vendors and classes."""
    for number, (vendor, kind) in enumerate(devices):
        device = folder / f"0000:0{number}:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "class").write_text(f"{kind}\n")
    return folder


@pytest.fixture
def linux(monkeypatch: Monkey, tmp_path: Path) -> Path:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(cards, "_DEVICES", tmp_path / "bus")
    monkeypatch.setattr(cards, "_WSL", tmp_path / "libcuda.so.1")
    return tmp_path


@pytest.mark.parametrize("vendor", CARDS)
def test_a_card_is_known_by_its_vendor_and_class(vendor: str, linux: Path) -> None:
    assert cards.vendors() == set()
    # A network card and a sound chip of the same vendors are no graphics cards.
    bus(linux / "bus", ("0x8086", "0x020000"), ("0x10de", "0x040300"), CARDS[vendor])
    assert cards.vendors() == {vendor}


def test_a_card_is_known_in_wsl_which_shows_no_pci_devices(linux: Path) -> None:
    (linux / "libcuda.so.1").touch()
    assert cards.vendors() == {"NVIDIA"}


def test_windows_and_macos_are_asked_in_their_own_way(monkeypatch: Monkey) -> None:
    told = "PCI\\VEN_10DE&DEV_2684&SUBSYS_1\r\nPCI\\VEN_8086&DEV_A780\r\nROOT\\DISPLAY\\0000\r\n"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, told))
    assert cards.vendors() == {"NVIDIA", "Intel"}
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert cards.vendors() == {"Apple"}


def finding(monkeypatch: Monkey, *here: str, cuda: str | None) -> doctor.Finding:
    """What is said of the device when torch, built for ``cuda``, finds none."""
    monkeypatch.setattr(cards, "vendors", lambda: set(here))
    monkeypatch.setattr("vsvsr.engine.device.gpus", lambda: iter(()))
    monkeypatch.setattr("torch.version.cuda", cuda)
    return next(found for found in doctor._torch() if found.subject == "device")


def test_a_torch_without_cuda_beside_an_nvidia_card_is_mended_by_one_command(monkeypatch: Monkey) -> None:
    found = finding(monkeypatch, "NVIDIA", "Intel", cuda=None)
    assert "there is an NVIDIA card, but torch" in found.state
    assert found.command == ("pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130")


def test_a_torch_with_cuda_beside_an_nvidia_card_needs_the_driver(monkeypatch: Monkey) -> None:
    found = finding(monkeypatch, "NVIDIA", cuda="13.0")
    assert "finds no working driver" in found.state
    assert (found.remedy, found.command) == ("install the driver from nvidia.com/drivers", None)


@pytest.mark.parametrize(
    ("here", "state"),
    [
        ((), "CPU only"),
        (("Intel",), "CPU only; vsvsr does not use graphics by Intel"),
        (("Apple",), "CPU only; vsvsr does not use graphics by Apple"),
    ],
)
def test_other_graphics_are_no_fault(here: tuple[str, ...], state: str, monkeypatch: Monkey) -> None:
    found = finding(monkeypatch, *here, cuda=None)
    assert (found.state, found.remedy) == (state, None)


def test_an_amd_card_on_linux_is_told_of_rocm(monkeypatch: Monkey) -> None:
    found = finding(monkeypatch, "AMD", cuda=None)
    assert "ROCm build" in found.state
    assert found.remedy is None


def asked(tmp_path: Path, answer: str) -> subprocess.CompletedProcess[str]:
    """``vsvsr doctor --fix`` where vspipe finds no Python, because nothing was configured."""
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "vsvsr", "doctor", "--fix"]
    return subprocess.run(command, env=environment, input=answer, capture_output=True, text=True, check=False)


def test_fix_asks_and_runs_what_was_agreed_to(tmp_path: Path) -> None:
    for answer in ("n\n", ""):
        done = asked(tmp_path, answer)
        assert done.returncode == 1
        assert "run vapoursynth config?" in done.stdout
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.rglob("*"))
    done = asked(tmp_path, "y\n")
    assert done.returncode == 0, done.stderr
    assert "$ vapoursynth config\n" in done.stdout
    assert done.stdout.endswith("run vsvsr doctor again\n")
    # It has mended it: nothing is left to ask.
    again = asked(tmp_path, "")
    assert (again.returncode, "run vapoursynth" in again.stdout) == (0, False), again.stdout


def test_on_windows_each_word_of_the_mending_is_quoted(monkeypatch: Monkey) -> None:
    given: list[str] = []
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr("sys.executable", r"C:\Program Files\python.exe")
    monkeypatch.setattr("os.execv", lambda program, words: given.extend(words))
    monkeypatch.setattr("typer.confirm", lambda question: True)
    command = "pip install --force-reinstall torch"
    monkeypatch.setattr(doctor, "CHECKS", (lambda: iter((doctor.Finding("device", "no CUDA", command),)),))
    with pytest.raises(typer.Exit):  # where execv comes back
        doctor.doctor(fix=True)
    assert given == [r'"C:\Program Files\python.exe"', "-m", "vsvsr.cli.mend", f'"{command}"']


def test_a_command_that_fails_ends_the_mending(capfd: pytest.CaptureFixture[str]) -> None:
    assert mend.main(["pip no-such-command", "pip --version"]) == 1
    told = capfd.readouterr()
    assert told.out == "$ pip no-such-command\n"
    assert "vsvsr: pip no-such-command ended with exit code 1\n" in told.err
