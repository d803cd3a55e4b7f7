"""What Windows does differently, imitated: this suite runs on Linux."""

import errno
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.films import ffmpeg
from vsvsr import files
from vsvsr.errors import UserError
from vsvsr.video import encoder
from vsvsr.video.source import from_rgb, open_video


def test_an_ffmpeg_that_died_is_one_line_where_its_pipe_is_an_invalid_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dead(subprocess.Popen[bytes]):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[call-overload]
            pipe = self.stdin

            def write(data: bytes) -> int:
                self.kill()
                raise OSError(errno.EINVAL, "Invalid argument")

            self.stdin = SimpleNamespace(write=write, close=pipe.close)  # type: ignore[assignment,union-attr]

    path, target = tmp_path / "in.mkv", tmp_path / "out.mkv"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=32x32:rate=25", "-frames:v", "3", path)
    source = open_video(path)
    clip = from_rgb(source.clip, source)
    monkeypatch.setattr(encoder, "subprocess", SimpleNamespace(Popen=Dead, PIPE=subprocess.PIPE))
    encoding = encoder.Encoding()
    with (
        pytest.raises(UserError, match=rf"^{target}: ffmpeg was ended by signal 9$"),
        encoder.encode(clip, source, target, target, first=0, zero=0, encoding=encoding) as write,
        clip.get_frame(0) as frame,
    ):
        write(frame)


def test_a_file_that_another_program_has_open_is_replaced_once_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, target = tmp_path / "new", tmp_path / "old"
    written.write_bytes(b"new")
    target.write_bytes(b"old")
    replace, refusals = Path.replace, [2]

    def refuse(self: Path, other: Path) -> Path:
        if refusals[0]:
            refusals[0] -= 1
            raise PermissionError(errno.EACCES, "Permission denied")
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr(files, "_IN_USE", 20)
    files.replace_file(written, target)
    assert target.read_bytes() == b"new"


def test_a_file_that_stays_open_is_the_operating_systems_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, other: Path) -> Path:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr(files, "_IN_USE", 2)
    with pytest.raises(PermissionError):
        files.replace_file(tmp_path / "new", tmp_path / "old")
