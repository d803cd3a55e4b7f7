"""Results scaled down to the size that people want, and single frames. Real films, real ffmpeg, the native plugin."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import vapoursynth as vs

from tests.films import decode, small
from vsvsr.cli.app import app
from vsvsr.errors import WrongArgumentError
from vsvsr.video.encoder import Encoding
from vsvsr.video.ffmpeg import find_ffmpeg
from vsvsr.video.size import Size, scaled_down
from vsvsr.video.source import Pictures, Video, open_video

Monkey = pytest.MonkeyPatch
Capsys = pytest.CaptureFixture[str]


def run(monkeypatch: Monkey, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["vsvsr", *map(str, arguments)])
    return app()


@pytest.fixture(params=["bt709", "smpte2084", "arib-std-b67"])
def source(tmp_path: Path, request: pytest.FixtureRequest) -> Video:
    tags = f"format=yuv420p10,setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc={request.param}"
    return open_video(small(tmp_path / "in.mkv", vf=tags, frames=1))


def test_scaling_down_mixes_light_and_leaves_flat_colours_alone(source: Video) -> None:
    black, grey, white = (
        vs.core.std.BlankClip(format=vs.RGBS, width=1, height=64, length=1, color=[level] * 3) for level in (0, 0.4, 1)
    )
    stripes = vs.core.std.StackHorizontal([black, white] * 32 + [grey] * 32)
    small_one = np.asarray(scaled_down(stripes, source, Size(height=32)).get_frame(0)[0])
    assert small_one.shape == (32, 48)
    # Half of the light of white, after the transfer function of the tags; half of the numbers would be 0.5. From a
    # display of gamma 2.4; from 10,000 cd/m2 in PQ; from the system gamma of 1.2 in HLG.
    half = {1: 0.5 ** (1 / 2.4), 16: 0.9265, 18: 0.8933}[source.colour.transfer]
    np.testing.assert_allclose(small_one[4:-4, 4:28], half, atol=2e-3)
    np.testing.assert_allclose(small_one[4:-4, 36:44], 0.4, atol=2e-3)


def test_a_side_that_is_not_given_follows_and_nothing_is_enlarged() -> None:
    assert Size(height=1080).of(2560, 1440) == (1920, 1080)
    assert Size(width=1000).of(2560, 1440) == (1000, 562)
    assert Size(width=1920, height=1080, fit=True).of(2880, 2160) == (1440, 1080)
    assert Size(width=1920, height=1080, fit=True).of(1280, 720) == (1280, 720)
    with pytest.raises(WrongArgumentError, match="--height 1080: the filter makes 1280x720, which would have to be"):
        Size(height=1080).of(1280, 720)


def test_a_film_of_another_height_is_the_filters_result_scaled_down(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    # Chroma sited at the top left: what is scaled is the picture, chroma is sampled after that.
    tags = "format=yuv420p10,setparams=colorspace=bt709:color_trc=bt709,setparams=chroma_location=topleft"
    film = small(tmp_path / "in.mkv", vf=tags, frames=3, options=("-chroma_sample_location", "topleft"))
    target = tmp_path / "out.mkv"
    lossless = ("--encoder", "ffv1", "--model-path", tiny_fastreal)
    assert run(monkeypatch, "upscale", film, target, "--height", "90", *lossless) == 0
    assert "3 frames of 160x90" in capsys.readouterr().err
    source = open_video(film)
    assert source.colour.chroma_location == 2
    light = vs.core.vsvsr.FastReal(source.clip, model_path=str(tiny_fastreal)).resize.Bicubic(
        transfer_in_s="709", transfer_s="linear"
    )
    expected = (
        light.resize.Bicubic(160, 90)
        .resize.Bicubic(transfer_in_s="linear", transfer_s="709")
        .resize.Bicubic(format=vs.YUV420P10, matrix_s="709", range_s="limited", chromaloc_s="top_left")
    )
    result, _ = decode(target)
    for got, wanted in zip(result.frames(), expected.frames(), strict=True):
        for plane in range(3):
            np.testing.assert_array_equal(np.asarray(got[plane]), np.asarray(wanted[plane]))


def test_one_frame_is_the_frame_of_the_film(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys
) -> None:
    film, picture = small(tmp_path / "in.mp4", frames=6), tmp_path / "out.png"
    more = ("--model-path", tiny_fastreal)
    assert run(monkeypatch, "upscale", film, picture, "--frame", "4", *more) == 0
    whole = Pictures(vs.core.vsvsr.FastReal(open_video(film).clip, model_path=str(tiny_fastreal)))
    np.testing.assert_array_equal(Pictures(open_video(picture).clip)[0], whole[4])
    capsys.readouterr()
    assert run(monkeypatch, "upscale", film, picture, "-y", "--frame", "6", *more) == 2
    assert capsys.readouterr().err == f"vsvsr: frames 6 to 6: {film} has 6\n"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--height 1080", "--height 1080: the filter makes 256x144, which would have to be enlarged"),
        ("--height 91", "--height 91 is odd; encoders want even sizes"),
        ("--height 90 --width 90", "give one of --width, --height and --fit"),
        ("--fit large", "--fit large: write WIDTHxHEIGHT, as 1920x1080"),
        ("--fit 20x20", "--fit 20x20: 20x12 is too small; allowed: sides of 16 and more"),
        ("--frame 1 --end 2", "--frame is one frame; give it without --start and --end"),
    ],
)
def test_a_size_that_cannot_be_is_one_line(
    tmp_path: Path, tiny_fastreal: Path, monkeypatch: Monkey, capsys: Capsys, options: str, line: str
) -> None:
    film = small(tmp_path / "in.mp4", frames=2)
    command = ("upscale", film, tmp_path / "out.mp4", "--model-path", tiny_fastreal)
    assert run(monkeypatch, *command, *options.split()) == 2
    assert capsys.readouterr().err == f"vsvsr: {line}\n"
    assert list(tmp_path.iterdir()) == [film]


@pytest.mark.parametrize("encoder", ["h264_nvenc", "av1_nvenc", "hevc_qsv", "hevc_amf", "h264_vaapi"])
def test_encoders_in_hardware_know_the_options_that_they_get(encoder: str) -> None:
    command = [find_ffmpeg(), "-v", "verbose", "-f", "lavfi", "-i", "testsrc2=size=256x144:duration=0.1"]
    known = subprocess.run([command[0], "-v", "error", "-h", f"encoder={encoder}"], capture_output=True, text=True)
    if f"Encoder {encoder}" not in known.stdout:
        pytest.skip(f"this ffmpeg has no {encoder}")
    arguments = Encoding(encoder=encoder, crf=21).arguments(Path("out.mp4"))
    assert "21" in arguments
    said = subprocess.run([*command, *arguments, "-f", "null", "-"], capture_output=True, text=True).stderr
    for complaint in ("not found", "Unrecognized option", "Undefined constant", "Unable to parse", "has not been used"):
        assert complaint not in said
