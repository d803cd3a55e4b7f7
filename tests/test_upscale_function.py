"""``vsvsr.upscale``: a clip of any colours through a filter, and back to the same colours and tags."""

import pytest
import vapoursynth as vs

import vsvsr
from tests.clips import clip_path
from tests.pixels import play

# Named in VapourSynth's own terms, so that nothing here repeats the code's tables.
TAGGED = {
    "4:2:0 BT.2020, full, top left": (vs.YUV420P10, "2020ncl", "full", "top_left"),
    "4:2:2 BT.709, limited, left": (vs.YUV422P8, "709", "limited", "left"),
    "4:4:4 BT.601 in floats": (vs.YUV444PS, "170m", "limited", None),
    "grey, full": (vs.GRAY16, "709", "full", None),
}


@pytest.fixture
def plain() -> vs.VideoNode:
    """Four frames, 48x32, RGBS."""
    clip = vs.core.bs.VideoSource(str(clip_path("bikes.mp4")), cachemode=0)[:4]
    return clip.resize.Bicubic(width=48, height=32, format=vs.RGBS, matrix_in_s="709")


@pytest.mark.parametrize("name", TAGGED)
def test_a_tagged_clip_is_converted_by_its_tags_and_keeps_them(name: str, plain: vs.VideoNode) -> None:
    video_format, matrix, levels, place = TAGGED[name]
    siting = {"chromaloc_s": place} if place else {}
    clip = plain.resize.Bicubic(format=video_format, matrix_s=matrix, range_s=levels, **siting)
    clip = clip.std.SetFrameProps(_Transfer=16, _Primaries=9)
    siting_in = {"chromaloc_in_s": place} if place else {}
    rgb = clip.resize.Bicubic(format=vs.RGBS, matrix_in_s=matrix, range_in_s=levels, **siting_in)
    large = vs.core.vsvsr.FastReal(rgb, device_index=-1)
    expected = large.resize.Bicubic(format=video_format, matrix_s=matrix, range_s=levels, **siting)
    output = vsvsr.upscale(clip, device_index=-1)
    assert output.format.id == video_format
    assert play(output) == play(expected)
    tags = ("_Matrix", "_Range", "_ChromaLocation", "_Transfer", "_Primaries")
    with clip.get_frame(1) as before, output.get_frame(1) as after:
        kept = {tag: before.props.get(tag) for tag in tags}
        assert {tag: after.props.get(tag) for tag in tags} == kept


@pytest.mark.parametrize(("width", "height", "matrix"), [(1040, 16, "709"), (48, 592, "709"), (1024, 16, "170m")])
def test_a_clip_without_colour_tags_counts_as_players_take_it_and_is_tagged(
    width: int, height: int, matrix: str
) -> None:
    clip = vs.core.std.BlankClip(width=width, height=height, format=vs.YUV420P8, length=1, color=[80, 160, 90])
    rgb = clip.resize.Bicubic(format=vs.RGBS, matrix_in_s=matrix)
    large = vs.core.vsvsr.FastReal(rgb, device_index=-1)
    output = vsvsr.upscale(clip, device_index=-1)
    assert play(output) == play(large.resize.Bicubic(format=vs.YUV420P8, matrix_s=matrix))
    with output.get_frame(0) as frame:
        assert frame.props["_Matrix"] == {"709": 1, "170m": 6}[matrix]
        assert (frame.props["_Range"], frame.props["_ChromaLocation"]) == (0, 0)
    # As previewers do; it fails without a matrix, a transfer or primaries.
    output.resize.Bicubic(format=vs.RGB24, transfer_s="709", primaries_s="709").get_frame(0).close()


def test_a_matrix_that_no_yuv_can_have_counts_as_none(plain: vs.VideoNode) -> None:
    clip = plain.resize.Bicubic(format=vs.YUV444P8, matrix_s="170m").std.SetFrameProps(_Matrix=0)
    with vsvsr.upscale(clip, device_index=-1).get_frame(0) as frame:
        assert frame.props["_Matrix"] == 6


def test_rgb_goes_through_as_it_is_and_limited_rgb_comes_back_limited(plain: vs.VideoNode) -> None:
    large = vs.core.vsvsr.FastReal(plain, device_index=-1)
    assert play(vsvsr.upscale(plain, device_index=-1)) == play(large)
    studio = plain.resize.Bicubic(format=vs.RGB48, range_s="limited")
    large = vs.core.vsvsr.FastReal(studio.resize.Bicubic(format=vs.RGBS), device_index=-1)
    expected = large.resize.Bicubic(format=vs.RGB48, range_s="limited")
    assert play(vsvsr.upscale(studio, device_index=-1)) == play(expected)


def test_the_filter_and_its_arguments_can_be_chosen(plain: vs.VideoNode) -> None:
    output = vsvsr.upscale(plain, "FastReal", model="fastreal-compact-x2", segment=3, warmup=1, device_index=-1)
    assert (output.width, output.height) == (96, 64)
    direct = vs.core.vsvsr.FastReal(plain, model="fastreal-compact-x2", segment=3, warmup=1, device_index=-1)
    assert play(output) == play(direct)


def test_a_scene_that_a_detector_has_marked_starts_afresh(plain: vs.VideoNode) -> None:
    film = vs.core.bs.VideoSource(str(clip_path("bigbuckbunny.mp4")), cachemode=0)[60:64]
    first = plain.resize.Bicubic(width=64, height=48, format=vs.YUV420P8, matrix_s="709")
    second = film.resize.Bicubic(width=64, height=48, format=vs.YUV420P8)
    second = second.std.SetFrameProps(_Matrix=1, _Range=0, _ChromaLocation=0)
    marked = vs.core.scxvid.Scxvid(first + second)
    assert [n for n, frame in enumerate(marked.frames(close=True)) if frame.props["_SceneChangePrev"]] == [0, 4]
    alone = play(vsvsr.upscale(second, device_index=-1))
    assert {n - 4: found for n, found in play(vsvsr.upscale(marked, device_index=-1)).items() if n >= 4} == alone
    through = play(vsvsr.upscale(marked, scene_change=False, device_index=-1))
    assert through[4] != alone[0]


def test_fp16_converts_to_half_precision(plain: vs.VideoNode) -> None:
    half = plain.resize.Bicubic(format=vs.RGBH)
    large = vs.core.vsvsr.FastReal(half, device_index=-1)
    expected = play(large.resize.Bicubic(format=vs.RGBS))
    assert play(vsvsr.upscale(plain, fp16=True, device_index=-1)) == expected != play(vsvsr.upscale(plain))


def test_tags_of_other_kinds_count_as_none(plain: vs.VideoNode) -> None:
    expected = play(vsvsr.upscale(plain))
    assert play(vsvsr.upscale(plain.std.SetFrameProps(_Matrix=[1, 6], _ChromaLocation="left"))) == expected
    rgb = plain.resize.Bicubic(format=vs.RGB24, matrix_in=1)
    assert play(vsvsr.upscale(rgb.std.SetFrameProps(_Matrix=1))) == play(vsvsr.upscale(rgb))


def test_what_cannot_be_upscaled_is_one_line(plain: vs.VideoNode) -> None:
    changing = vs.core.std.Splice([plain, plain.std.CropAbs(width=32, height=32)], mismatch=True)
    wrong = {
        "the clip's format or size varies; make it constant": lambda: vsvsr.upscale(changing),
        "the clip is interlaced; deinterlace it first": lambda: vsvsr.upscale(plain.std.SetFieldBased(2)),
        "name='Toy' is not possible; allowed: FastReal or Skip or MIA or Ultra": lambda: vsvsr.upscale(plain, "Toy"),
        "name=['FastReal'] is not possible; allowed: FastReal or Skip": lambda: vsvsr.upscale(plain, ["FastReal"]),  # type: ignore[arg-type]
        "clip is AudioNode; give a video clip": lambda: vsvsr.upscale(vs.core.std.BlankAudio()),  # type: ignore[arg-type]
        "threshold is no argument of FastReal; those are model, model_path,": lambda: vsvsr.upscale(
            plain, threshold=0.5
        ),
    }
    for message, call in wrong.items():
        with pytest.raises(vs.Error) as caught:
            call()
        assert str(caught.value).startswith(f"upscale: {message}")
        assert "\n" not in str(caught.value)
    with pytest.raises(vs.Error, match=r"^FastReal: the clip is 8x32, the smallest possible is 16x16$"):
        vsvsr.upscale(plain.std.CropAbs(width=8, height=32))
