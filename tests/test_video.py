"""Reading films: rotation, colour, image sequences. ffmpeg's own reading is the reference."""

import itertools
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import vapoursynth as vs

from tests.films import ffmpeg
from vsvsr.errors import UserError
from vsvsr.training.data.build import DatasetConfig, build_dataset
from vsvsr.video.ffmpeg import find_ffmpeg
from vsvsr.video.source import Pictures, image_sequence, open_video

FLIPS: tuple[tuple[str, ...], ...] = ((), ("-display_hflip",), ("-display_vflip",))


def film(path: Path, *, size: str = "96x64", frames: int = 4, vf: str = "null") -> Path:
    """Moving bars and numbers, no two corners alike, lossless."""
    source = ("-f", "lavfi", "-i", f"testsrc2=size={size}:rate=25", "-vf", f"{vf},format=yuv420p")
    ffmpeg(*source, "-frames:v", str(frames), "-c:v", "libx264", "-qp", "0", path)
    return path


def turned(path: Path, *options: str) -> Path:
    target = path.with_name(f"turned{path.suffix}")
    ffmpeg(*options, "-i", path, "-c", "copy", target)
    return target


def as_ffmpeg_shows(path: Path, size: tuple[int, int]) -> np.ndarray:
    command = [find_ffmpeg(), "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    pixels = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(pixels, np.uint8).reshape(-1, *size, 3).astype(int)


@pytest.mark.parametrize(("degrees", "flip"), list(itertools.product(("0", "90", "180", "270"), FLIPS)))
def test_a_film_is_turned_as_ffmpeg_turns_it(tmp_path: Path, degrees: str, flip: tuple[str, ...]) -> None:
    path = turned(film(tmp_path / "in.mp4", vf="setsar=16/11"), "-display_rotation:v:0", degrees, *flip)
    source = open_video(path)
    pictures = Pictures(source.clip)
    upright = degrees in ("0", "180")
    assert pictures.size == ((64, 96) if upright else (96, 64))
    assert source.sample_aspect_ratio == (Fraction(16, 11) if upright else Fraction(11, 16))
    reference = as_ffmpeg_shows(path, pictures.size)
    # The two interpolate chroma differently, no more; any other orientation differs by more than 60.
    assert np.abs(np.stack(list(pictures)) - reference).mean() < 8


def test_a_film_that_is_to_stand_askew_is_refused(tmp_path: Path) -> None:
    path = turned(film(tmp_path / "in.mp4"), "-display_rotation:v:0", "30")
    with pytest.raises(UserError, match="turned by 330 degrees; allowed are multiples of 90"):
        open_video(path)


def test_training_clips_of_a_portrait_film_are_pieces_of_its_upright_picture(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    landscape = film(tmp_path / "films/in.mp4", size="96x64", frames=206)
    path = turned(landscape, "-display_rotation:v:0", "90")
    landscape.unlink()
    build_dataset(tmp_path / "films", tmp_path / "data", DatasetConfig(clips=1, frames=6, size=(96, 64), clean=True))
    truth = np.load(tmp_path / "data/00000/gt.npy")
    reference = as_ffmpeg_shows(path, (96, 64))
    nearest = min(np.abs(reference[first : first + 6] - truth).mean() for first in range(len(reference) - 5))
    assert nearest < 8


@pytest.mark.parametrize(
    "names",
    [
        [f"{number:08d}.png" for number in range(5)],
        [f"im{number}.png" for number in range(8, 13)],
        [f"50%_{number:03d}.png" for number in range(7, 12)],
    ],
)
def test_a_folder_of_numbered_pictures_is_a_film(tmp_path: Path, names: list[str]) -> None:
    folder = tmp_path / "100%d"
    folder.mkdir()
    ffmpeg("-i", film(tmp_path / "in.mp4", frames=5), "-f", "image2", tmp_path / "frame_%d.png")
    for number, name in enumerate(names, start=1):
        (tmp_path / f"frame_{number}.png").rename(folder / name)
    shown = as_ffmpeg_shows(tmp_path / "in.mp4", (64, 96))
    pictures = Pictures(open_video(folder).clip)
    assert len(pictures) == 5
    np.testing.assert_array_equal(np.stack(list(pictures)), shown)
    np.testing.assert_array_equal(pictures[3], shown[3])
    assert [path.name for path in image_sequence(folder)] == names


def test_what_is_wrong_with_a_folder_of_pictures_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no pictures"):
        open_video(tmp_path)
    ffmpeg("-i", film(tmp_path / "in.mp4", frames=5), tmp_path / "%02d.png")
    (tmp_path / "03.png").unlink()
    with pytest.raises(UserError, match="picture 3 of the sequence is missing"):
        open_video(tmp_path)
    ffmpeg("-i", tmp_path / "in.mp4", "-frames:v", "1", "-vf", "scale=48:32", tmp_path / "03.png")
    with pytest.raises(UserError, match="changes its size or format on the way"):
        open_video(tmp_path)
    (tmp_path / "03.png").write_bytes((tmp_path / "04.png").read_bytes()[:60])
    with pytest.raises(UserError, match="4 of its 5 pictures can be read"):
        open_video(tmp_path)
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"the number of 02\.png occurs twice"):
        open_video(tmp_path)
    (tmp_path / "cover.png").write_bytes(b"")
    with pytest.raises(UserError, match="are named alike but for their number"):
        open_video(tmp_path)


def test_frames_that_share_a_timestamp_follow_each_other_and_no_other_moves(tmp_path: Path) -> None:
    stamps = "settb=1/1000,setpts='if(lt(N,5),N*40,if(eq(N,5),160,1000+N*200))'"
    exact = ("-fps_mode", "passthrough", "-enc_time_base", "1/1000", "-c:v", "ffv1", "-an")
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=48x32:r=25:d=0.4", "-vf", stamps, *exact, tmp_path / "in.mkv")
    video = open_video(tmp_path / "in.mkv")
    shown = [0, 40, 80, 120, 160, 161, 2200, 2400, 2600, 2800, 3000]
    assert video.timestamps == [1_000_000 * stamp for stamp in shown]
    assert video.left_out == ()


def test_timestamps_that_go_back_are_told(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=48x32:r=25:d=0.4", "-c:v", "mpeg2video", tmp_path / "one.ts")
    (tmp_path / "two.ts").write_bytes(2 * (tmp_path / "one.ts").read_bytes())
    video = open_video(tmp_path / "two.ts")
    assert video.left_out == ("its timestamps, which go back at frame 10: frames follow evenly, and sound may not fit",)
    assert all(after > before for before, after in itertools.pairwise(video.timestamps))


def test_a_film_that_was_made_again_under_its_name_is_read_again(tmp_path: Path) -> None:
    for colour, frames in (("red", 150), ("blue", 150)):  # BestSource keeps no index of less than 100 frames
        source = f"color={colour}:s=48x32:r=25:d={frames / 25}"
        ffmpeg("-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p", tmp_path / "film.y4m")
        video = open_video(tmp_path / "film.y4m")
        assert len(list(Pictures(video.clip))) == frames
    assert Pictures(video.clip)[0][..., 2].mean() > 200


def test_transparency_is_told_of(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=48x32", "-frames:v", "1", "-pix_fmt", "rgba", tmp_path / "in.png")
    assert open_video(tmp_path / "in.png").left_out == ("transparency",)


def test_a_name_is_never_taken_for_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.move(film(Path("in.mp4")), "http:x.mp4")
    assert len(Pictures(open_video(Path("http:x.mp4")).clip)) == 4


def test_frames_are_read_whatever_bytes_their_name_has(tmp_path: Path) -> None:
    path = tmp_path / "\udcff\udce9.mp4"
    shutil.move(film(tmp_path / "in.mp4"), path)
    assert len(Pictures(open_video(path).clip)) == 4


def test_a_picture_that_cannot_be_decoded_is_an_error_of_one_line() -> None:
    def fail(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        raise ValueError("no luck")

    clip = vs.core.std.BlankClip(format=vs.RGBS, width=16, height=16, length=2)
    with pytest.raises(UserError, match=r"^ValueError: no luck$"):
        list(Pictures(clip.std.ModifyFrame(clip, fail)))
