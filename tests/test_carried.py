"""What a film has besides its frames, before and after. ffmpeg tells what is in a file; every decoder reads HDR."""

import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from tests.films import decode, ffmpeg, small
from vsvsr.cli.app import app
from vsvsr.video.ffmpeg import describe, find_ffmpeg
from vsvsr.video.tracks import tracks_of

Monkey = pytest.MonkeyPatch
Capsys = pytest.CaptureFixture[str]

HDR = {
    "MasteringDisplayPrimariesX": [0.68, 0.265, 0.15],
    "MasteringDisplayPrimariesY": [0.32, 0.69, 0.06],
    "MasteringDisplayWhitePointX": 0.3127,
    "MasteringDisplayWhitePointY": 0.329,
    "MasteringDisplayMinLuminance": 0.0001,
    "MasteringDisplayMaxLuminance": 1000.0,
    "ContentLightLevelMax": 1000,
    "ContentLightLevelAverage": 400,
}
X265 = (
    "log-level=none:hdr10=1:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:max-cll=1000,400"
    ":master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"
)
CHAPTERS = """;FFMETADATA1
title=A film
[CHAPTER]
TIMEBASE=1/1000
START=0
END=150
title=one
[CHAPTER]
TIMEBASE=1/1000
START=150
END=320
title=two
"""


def run(monkeypatch: Monkey, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["vsvsr", *map(str, arguments)])
    return app()


@pytest.fixture(scope="module")
def rich_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film in HDR with sound in two languages, two kinds of subtitles, chapters, a font and a cover."""
    folder = tmp_path_factory.mktemp("rich")
    (folder / "one.srt").write_text("1\n00:00:00,040 --> 00:00:00,200\nhello\n")
    (folder / "chapters.txt").write_text(CHAPTERS)
    (folder / "letters.ttf").write_bytes(b"no real font")
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48", "-frames:v", "1", folder / "cover.png")
    ffmpeg(
        *("-f", "lavfi", "-i", "testsrc2=size=64x36:rate=25:duration=0.32"),
        *("-f", "lavfi", "-i", "sine=duration=0.32", "-i", folder / "one.srt", "-i", folder / "chapters.txt"),
        *("-map", "0", "-map", "1", "-map", "1", "-map", "2", "-map", "2"),
        *("-map_metadata", "3", "-map_chapters", "3", "-pix_fmt", "yuv420p10le", "-c:v", "libx265"),
        *("-x265-params", X265, "-c:a", "aac", "-c:s:0", "srt", "-c:s:1", "ass"),
        *("-metadata:s:v:0", "language=jpn", "-metadata:s:v:0", "title=One", "-disposition:v:0", "default+forced"),
        *("-metadata:s:s:0", "language=ger"),
        *("-metadata:s:a:0", "language=ger", "-metadata:s:a:1", "language=fre"),
        *("-disposition:s:0", "forced", "-attach", folder / "letters.ttf", "-metadata:s:t:0", "mimetype=font/ttf"),
        *("-attach", folder / "cover.png", "-metadata:s:t:1", "mimetype=image/png"),
        *("-metadata:s:t:1", "filename=cover.png", folder / "in.mkv"),
    )
    return folder / "in.mkv"


def told(path: Path) -> dict[str, object]:
    """What ffmpeg tells of a file."""
    described = describe(path)
    return {
        "tracks": [("Film" if t.index == 0 else t.kind, t.codec * (t.index > 0), t.name) for t in tracks_of(described)],
        "languages": re.findall(r"Stream #0:\d+(?:\[\w+\])?\((ger|fre|jpn)\): (\w+)", described),
        "default": re.findall(r"Stream #0:(\d+).*\(default\)", described),
        "forced": re.findall(r"(\w+): .*\(forced\)", described),
        "title": re.findall(r"^    title +: (.*)", described, re.MULTILINE),
        "titles": re.findall(r"^      title +: (.*)", described, re.MULTILINE),
        "chapters": re.findall(r"Chapter #0:\d: start (\S+), end (\S+)\n.*\n +title +: (\w+)", described),
        "colour": re.findall(r"Video: .*?\((tv, [^,)]*)", described),
    }  # fmt: skip


def hdr(path: Path) -> dict[str, object]:
    props = decode(path)[0].get_frame(0).props
    return {name: pytest.approx(props[name], rel=1e-3) for name in HDR if name in props}


@pytest.mark.parametrize("encoder", ["libx265", "libx264"])
def test_matroska_takes_everything_along(
    rich_film: Path, tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys, encoder: str
) -> None:
    target = tmp_path / "out.mkv"
    assert run(monkeypatch, "upscale", rich_film, target, "--model-path", tiny_fastreal, "--encoder", encoder) == 0
    assert "goes without" not in capsys.readouterr().err
    assert told(target) == told(rich_film)
    assert told(target)["tracks"] == [
        ("Film", "", ""), ("Audio", "aac", ""), ("Audio", "aac", ""), ("Subtitle", "subrip", ""),
        ("Subtitle", "ass", ""), ("Attachment", "none", "letters.ttf"), ("Video", "png", "cover.png"),
    ]  # fmt: skip
    assert told(target)["colour"] == ["tv, bt2020nc/bt2020/smpte2084"]
    assert "One" in str(told(target)["titles"])
    assert told(target)["forced"] == ["Video", "Subtitle"]
    assert hdr(rich_film) == HDR
    assert hdr(target) == HDR
    font = ("-dump_attachment:t:0", tmp_path / "letters.ttf", "-i", target)  # then it misses an output
    subprocess.run([find_ffmpeg(), "-v", "quiet", *font], check=False)
    ffmpeg("-i", target, "-map", "0:v:1", "-c", "copy", "-f", "image2", "-update", "1", tmp_path / "cover.png")
    for name in ("letters.ttf", "cover.png"):
        assert (tmp_path / name).read_bytes() == rich_film.with_name(name).read_bytes()
    subtitles = ("-map", "0:s:0", "-f", "srt", "-")
    assert ffmpeg("-i", target, *subtitles) == ffmpeg("-i", rich_film, *subtitles)


def test_sound_subtitles_and_what_a_file_says_can_be_left_out(
    rich_film: Path, tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey
) -> None:
    target = tmp_path / "out.mkv"
    command = ("upscale", rich_film, target, "--model-path", tiny_fastreal, "-y", "--encoder-option")
    assert run(monkeypatch, *command, "an=", "--encoder-option", "map_chapters=-1") == 0
    assert [kind for kind, _, _ in told(target)["tracks"]][:3] == ["Film", "Subtitle", "Subtitle"]
    assert told(target)["chapters"] == []
    assert run(monkeypatch, *command, "sn=") == 0
    assert [kind for kind, _, _ in told(target)["tracks"]][:4] == ["Film", "Audio", "Audio", "Attachment"]
    plain = small(tmp_path / "in.mkv", options=("-metadata", "title=A film"))
    assert told(plain)["title"] == ["A film"]
    command = ("upscale", plain, *command[2:])
    assert run(monkeypatch, *command, "map_metadata=-1") == 0
    assert told(target)["title"] == []


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_chapters_of_a_part_end_with_it(
    rich_film: Path, tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, suffix: str
) -> None:
    target = tmp_path / f"out{suffix}"
    part = ("--start", "1", "--end", "5")  # 0.04 to 0.2 s; the second chapter is from 0.15 to 0.32 s
    assert run(monkeypatch, "upscale", rich_film, target, "--model-path", tiny_fastreal, *part) == 0
    starts_and_ends = [(float(start), float(end)) for start, end, _ in told(target)["chapters"]]
    assert starts_and_ends == [pytest.approx((0, 0.11), abs=2e-3), pytest.approx((0.11, 0.16), abs=2e-3)]
    assert decode(target)[0].num_frames == 4


def test_sound_in_a_language_with_a_region_is_taken_along(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey
) -> None:
    source = small(tmp_path / "in.mkv", options=("-metadata:s:a:0", "language=pt-BR"))
    target = tmp_path / "out.mkv"
    assert run(monkeypatch, "upscale", source, target, "--model-path", tiny_fastreal) == 0
    for path in (source, target):
        assert re.search(r"Stream #0:1\(pt-BR\): Audio: aac", describe(path))
    (both,) = tracks_of("  Stream #0:1[0x100](eng,fra): Audio: mp2 ([3][0][0][0] / 0x0003), 48000 Hz, stereo")
    assert (both.index, both.language, both.codec) == (1, "eng,fra", "mp2")


@pytest.mark.parametrize(
    ("name", "left_out", "subtitles"),
    [
        ("out.mp4", "attachment 5 (letters.ttf)", ["mov_text", "mov_text"]),
        ("out.webm", "attachment 5 (letters.ttf), picture 6 (cover.png)", ["webvtt", "webvtt"]),
        ("out.ts", "subtitles 3 (subrip), subtitles 4 (ass), attachment 5 (letters.ttf), picture 6 (cover.png)", []),
    ],
)
def test_what_a_container_cannot_hold_is_named(
    rich_film: Path,
    tmp_path: Path,
    tiny_fastreal: Path,
    monkeypatch: Monkey,
    capsys: Capsys,
    name: str,
    left_out: str,
    subtitles: list[str],
) -> None:
    target = tmp_path / name
    assert run(monkeypatch, "upscale", rich_film, target, "--model-path", tiny_fastreal) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"{target}: a {target.suffix} cannot hold and goes without: {left_out}"
    tracks = tracks_of(describe(target))
    assert [track.codec for track in tracks if track.kind == "Subtitle"] == subtitles
    assert sum(track.kind == "Audio" for track in tracks) == 2
    assert [track.codec for track in tracks if track.is_cover] == (["png"] if name == "out.mp4" else [])
    if subtitles:
        assert "hello" in ffmpeg("-i", target, "-map", "0:s:0", "-f", "srt", "-")
        assert [title for _, _, title in told(target)["chapters"]] == ["one", "two"]  # type: ignore[attr-defined]
    if name == "out.mp4":
        assert hdr(target) == HDR


def test_hdr_that_an_encoder_does_not_write_is_named(
    rich_film: Path, tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    target = tmp_path / "out.nut"
    more = ("--model-path", tiny_fastreal, "--encoder", "ffv1")
    assert run(monkeypatch, "upscale", rich_film, target, *more) == 0
    assert f"{target}: goes without mastering display and light levels of HDR, " in capsys.readouterr().err
    assert hdr(target) == {}


def test_sound_that_a_container_refuses_is_an_error_before_the_first_frame(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    plain, source = small(tmp_path / "plain.mkv", frames=4), tmp_path / "in.mkv"
    ffmpeg("-i", plain, "-c:v", "copy", "-c:a", "pcm_s16le", source)
    target = tmp_path / "out.flv"
    assert run(monkeypatch, "upscale", source, target, "--model-path", tiny_fastreal) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"vsvsr: {target}: ")
    assert "FLV does not support" in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv", "plain.mkv"]


@pytest.mark.parametrize(
    ("codec", "encoder", "what"), [("flac", "libx264", "the sound"), ("copy", "ffv1", "the picture")]
)
def test_what_mpeg_ts_would_hold_as_mere_data_is_an_error_before_the_first_frame(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys, codec: str, encoder: str, what: str
) -> None:
    plain, source, target = small(tmp_path / "plain.mkv", frames=4), tmp_path / "in.mkv", tmp_path / "out.ts"
    ffmpeg("-i", plain, "-c:v", "copy", "-c:a", codec, source)
    command = ("upscale", source, target, "--model-path", tiny_fastreal, "--encoder", encoder)
    assert run(monkeypatch, *command) == 1
    said = capsys.readouterr().err
    assert said == f"vsvsr: {target}: MPEG-TS cannot hold {what} in this codec; choose another container\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv", "plain.mkv"]


def test_a_track_of_timecodes_hides_no_other(tmp_path: Path) -> None:
    plain, source = small(tmp_path / "in.mp4"), tmp_path / "in.mov"
    ffmpeg("-i", plain, "-c", "copy", "-timecode", "01:00:00:00", "-metadata:s:v", "language=fra", source)
    assert [(track.index, track.kind) for track in tracks_of(describe(source))] == [
        (0, "Video"),
        (1, "Audio"),
        (2, "Data"),
    ]
    assert tracks_of(describe(source))[0].language == "fra"


@pytest.mark.parametrize(
    ("source", "target"), [("in.mkv", "out.mkv"), ("in.mp4", "out.mkv"), ("in.mp4", "out.mp4"), ("in.mkv", "out.webm")]
)
def test_subtitles_that_are_shown_where_a_part_begins_are_in_it(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, source: str, target: str
) -> None:
    texts, plain, film, part = (tmp_path / name for name in ("in.srt", "plain.mkv", source, target))
    cues = ("00:00:00,040 --> 00:00:00,100", "00:00:00,150 --> 00:00:00,450", "00:00:00,500 --> 00:00:00,600")
    texts.write_text("".join(f"{n}\n{cue}\n{name}\n\n" for n, (cue, name) in enumerate(zip(cues, "abc", strict=True))))
    small(plain, frames=20)
    codec = "mov_text" if film.suffix == ".mp4" else "srt"
    ffmpeg("-i", plain, "-i", texts, "-map", "0", "-map", "1", "-c", "copy", "-c:s", codec, film)
    command = ("upscale", film, part, "--model-path", tiny_fastreal, "--start", "5", "--end", "16")
    assert run(monkeypatch, *command, *(("--encoder", "libvpx") if part.suffix == ".webm" else ())) == 0
    ffmpeg("-i", part, "-map", "0:s", tmp_path / "out.srt")
    shown = (tmp_path / "out.srt").read_text()
    assert re.findall(r"^\w$", re.sub(r"^\d+\n", "", shown, flags=re.MULTILINE), re.MULTILINE) == ["b", "c"]
    assert "00:00:00,000 --> 00:00:00,2" in shown
    assert decode(part)[1][0] == 0


def test_a_container_that_counts_frames_is_told_their_rate(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey
) -> None:
    source, target = small(tmp_path / "in.mkv"), tmp_path / "out.avi"
    assert run(monkeypatch, "upscale", source, target, "--model-path", tiny_fastreal) == 0
    made, stamps = decode(target)
    assert made.fps == decode(source)[0].fps == 25
    assert stamps == [Fraction(n, 25) for n in range(8)]
