"""Tests of ``core.vsvsr.Ultra`` alone: the authors' files, degradation, prompts and context."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vapoursynth as vs
from safetensors.torch import save_file

from tests.pixels import planes, play, same
from tests.ultra_files import released_state
from vsvsr.models.ultra import TINY, Upscaler, build, checkpoints, clip_iqa, save
from vsvsr.models.ultra.base import encode_prompt, tokenise

Ultra = Callable[..., vs.VideoNode]


@pytest.fixture
def small(bikes: vs.VideoNode) -> vs.VideoNode:
    return bikes.resize.Bicubic(width=16, height=16)


@pytest.fixture
def compact(tiny_ultra: Path) -> Ultra:
    return partial(vs.core.vsvsr.Ultra, model_path=str(tiny_ultra), device_index=-1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' layout, for the tiny networks of the base folder."""
    path = tmp_path_factory.mktemp("released") / "model_UltraVSR.pkl"
    torch.manual_seed(2)
    torch.save(released_state(build(TINY)), path)
    return path


def picture(output: vs.VideoNode, n: int = 0) -> np.ndarray:
    with output.get_frame(n) as frame:
        return planes(frame)


def test_the_authors_file_runs_on_a_base_folder_and_listens_to_the_prompt(
    small: vs.VideoNode, checkpoint: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The released rule leaves nothing of the tiny networks' channels.
    monkeypatch.setattr(checkpoints, "load_released", partial(checkpoints.load_released, config=TINY))
    ultra = partial(
        vs.core.vsvsr.Ultra, small[:1], model_path=str(checkpoint), base_path=str(base_folder), device_index=-1
    )
    plain, prompted, clean = (picture(ultra(**settings)) for settings in ({}, {"prompt": "a b"}, {"degradation": 0.9}))
    assert plain.shape == (3, 64, 64)
    assert plain.min() >= 0
    assert plain.max() <= 1
    assert np.abs(plain - prompted).max() > 1e-6
    assert np.abs(plain - clean).max() > 1e-3


def test_the_measured_degradation_holds_for_the_clip_whatever_is_asked_for_first(
    small: vs.VideoNode, compact: Ultra, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    judge = clip_iqa.ClipIQA(layers=(1, 1), width=16, outputs=64, text_width=64, text_layers=1, vocabulary=6).eval()
    for parameter in judge.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    judge.requires_grad_(False)
    monkeypatch.setattr(clip_iqa, "load_clip_iqa", lambda path: judge)
    clip = small[:12]
    samples = [torch.from_numpy(picture(clip, n)) for n in (0, 3, 6, 8, 11)]
    tokens = tokenise(base_folder, [text for pair in clip_iqa.PAIRS for text in pair])
    degradation = clip_iqa.measure_degradation(judge, tokens, samples)
    wanted = play(compact(clip, degradation=degradation))
    measured = partial(compact, clip, clip_iqa_path=__file__, base_path=str(base_folder))
    assert same(play(measured(), in_flight=4), wanted)
    assert same(play(measured(), [10, 3]), wanted)


@pytest.fixture
def authors(checkpoint: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ultra:
    """The authors' layout on a tiny base folder, with values that stay finite over many frames, and an empty cache."""
    state = torch.load(checkpoint, weights_only=True)
    for part in ("state_dict_unet", "state_dict_vae"):
        state[part] = {name: 0.1 * value for name, value in state[part].items()}
    checkpoint = tmp_path / "calm.pkl"
    torch.save(state, checkpoint)
    monkeypatch.setattr(checkpoints, "load_released", partial(checkpoints.load_released, config=TINY))
    monkeypatch.setenv("VSVSR_WEIGHTS_DIR", str(tmp_path / "cache"))
    return partial(vs.core.vsvsr.Ultra, model_path=str(checkpoint), base_path=str(base_folder), device_index=-1)


def test_prompts_of_scenes_hold_from_their_frame_on_however_frames_are_asked_for(
    small: vs.VideoNode, authors: Ultra, base_folder: Path, tmp_path: Path
) -> None:
    clip, listed = small[:12], tmp_path / "prompts.txt"
    listed.write_text("6: a b\n\n0: b\n", encoding="utf-8-sig")  # as editors on Windows do
    # A scene change keeps the sections apart, so that each is a clip with one prompt.
    cut = clip[:6] + clip[6].std.SetFrameProps(_SceneChangePrev=1) + clip[7:]
    whole = play(authors(cut, prompt=str(listed), length=12))
    one, two = play(authors(cut, prompt="b", length=12)), play(authors(cut, prompt="a b", length=12))
    assert same({n: whole[n] for n in range(6)}, {n: one[n] for n in range(6)})
    assert same({n: whole[n] for n in range(6, 12)}, {n: two[n] for n in range(6, 12)})
    assert whole[6] != one[6]
    assert np.isfinite(picture(authors(clip, prompt="b"), 11)).all()
    # Without a cut the sections are seen across their border, and still by the clip's numbers alone.
    bare = play(authors(clip, prompt=str(listed), length=12))
    assert same(play(authors(clip, prompt=str(listed), length=5)), bare)
    assert same(play(authors(clip, prompt=str(listed), length=5), [9, 2, 7]), bare)
    embeds = tmp_path / "prompts.safetensors"
    texts = {str(frame): encode_prompt(base_folder, text)[0] for frame, text in ((0, "b"), (6, "a b"))}
    save_file(texts, embeds)
    assert same(play(authors(clip, prompt_embeds=str(embeds), length=5)), bare)


@pytest.mark.parametrize("text", ["", "a street", "0: a\n0: b", "x: a", "-1: a", "99999999999: a", "\udcff"])
def test_a_file_of_prompts_that_cannot_be_read_is_refused_in_one_line(
    small: vs.VideoNode, authors: Ultra, tmp_path: Path, text: str
) -> None:
    listed = tmp_path / "prompts.txt"
    listed.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(vs.Error) as caught:
        authors(small, prompt=str(listed))
    allowed = "a text, or a UTF-8 file of lines `frame: text`"
    assert str(caught.value) == f"Ultra: prompt={str(listed)!r} is not possible; allowed: {allowed}"


def test_embeddings_of_another_width_or_name_are_refused_in_one_line(
    small: vs.VideoNode, authors: Ultra, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.safetensors"
    for tensors in ({"0": torch.zeros(77, 8)}, {"first": torch.zeros(77, 16)}, {"0": torch.zeros(1, 77, 16)}, {}):
        save_file(tensors, path)
        with pytest.raises(vs.Error, match=r"^Ultra: prompt_embeds=.* is not possible; allowed: [^\n]*$"):
            authors(small, prompt_embeds=str(path))
    with pytest.raises(vs.Error, match="allowed: either prompt or prompt_embeds, not both"):
        authors(small, prompt_embeds=str(path), prompt="a")


def test_degradation_is_measured_by_default_once_clip_was_added(
    small: vs.VideoNode,
    authors: Ultra,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clip = small[:2]
    with caplog.at_level("INFO", logger="vsvsr.filters.ultra"):
        assumed = play(authors(clip))
    assert caplog.messages == ["degradation is 0.5; it is measured once CLIP RN50 was added: vsvsr weights add FILE"]
    assert same(assumed, play(authors(clip, degradation=0.5)))
    torch.manual_seed(0)
    judge = clip_iqa.ClipIQA(layers=(1, 1), width=16, outputs=64, text_width=64, text_layers=1, vocabulary=6).eval()
    monkeypatch.setattr(clip_iqa, "load_clip_iqa", lambda path: judge.requires_grad_(False))
    monkeypatch.setattr(clip_iqa, "measure_degradation", lambda judge, tokens, frames: 0.8)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/CLIP-RN50.safetensors").touch()
    assert same(play(authors(clip)), play(authors(clip, degradation=0.8)))
    assert play(authors(clip))[0] != assumed[0]


def test_memory_that_runs_out_at_construction_makes_the_tiles_smaller(
    compact: Ultra, bikes: vs.VideoNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = []
    rehearse = Upscaler.dry_run

    def short(self: Upscaler, *arguments: Any) -> None:
        tried.append((self.tile, self.budget))
        rehearse(self, *arguments)
        if self.tile != (16, 16):
            raise torch.OutOfMemoryError

    monkeypatch.setattr(Upscaler, "dry_run", short)
    monkeypatch.setattr("vsvsr.engine.memory.rehearse", lambda device, dry_run: dry_run())
    output = compact(bikes[:3], tile=[64, 32])
    # Latents have half the sides of the source; what waits goes to host memory in the rehearsal.
    assert tried == [((16, 32), 0), ((16, 16), 0)]
    assert "the device's memory is too small for tile=" in caplog.text
    assert same(play(output), play(partial(compact, tile=[32, 32])(bikes[:3])))


def test_full_context_gives_the_same_pixels_whatever_the_length_of_chunks(small: vs.VideoNode, compact: Ultra) -> None:
    clip = small[:26]
    whole = play(compact(clip, length=26))
    assert same(play(compact(clip, length=7)), whole)
    assert same(play(compact(clip, length=7), [25, 12]), whole)
    short = play(compact(clip, length=7, overlap=1), [6])
    assert short[6] != whole[6]


def test_tiles_a_budget_and_colours_are_passed_on(bikes: vs.VideoNode, compact: Ultra) -> None:
    plain, within, tiled, faded = (
        picture(compact(bikes[:3], **settings), 1)
        for settings in ({}, {"feature_cache": 0}, {"tile": [32, 32], "tile_pad": 8}, {"colour": "none"})
    )
    assert np.array_equal(plain, within)
    assert np.abs(plain - tiled).max() > 0
    source = picture(bikes, 1).mean(axis=(1, 2))
    assert np.abs(plain.mean(axis=(1, 2)) - source).max() < 0.02
    assert np.abs(faded.mean(axis=(1, 2)) - source).max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"degradation": 1.5}, "degradation=1.5 is not possible; allowed: 0 to 1"),
        ({"colour": "sepia"}, "colour='sepia' is not possible; allowed: wavelet or adain or none"),
        ({"overlap": -1}, "overlap=-1 is not possible; allowed: 0 or more frames"),
        ({"feature_cache": -1}, "feature_cache=-1 is not possible; allowed: 0 or more megabytes"),
        ({"base_path": "/nowhere"}, "base_path='/nowhere' is not possible; allowed: an existing folder"),
        ({"clip_iqa_path": "/"}, "clip_iqa_path='/' is not possible; allowed: an existing file"),
        ({"prompt": "a"}, "prompt='a' is not possible; allowed: none with these weights, which know no text"),
        (
            {"clip_iqa_path": __file__, "degradation": 0.5},
            f"clip_iqa_path={__file__!r} is not possible; allowed: either degradation or clip_iqa_path, not both",
        ),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(
    small: vs.VideoNode, compact: Ultra, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(vs.Error) as caught:
        compact(small, **arguments)
    assert str(caught.value) == f"Ultra: {message}"


def test_what_is_missing_is_named_with_its_source(
    small: vs.VideoNode, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(**arguments: object) -> str:
        with pytest.raises(vs.Error) as caught:
            vs.core.vsvsr.Ultra(small, **arguments)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    monkeypatch.setenv("VSVSR_WEIGHTS_DIR", str(tmp_path))
    wanted = "Ultra: weights stable-diffusion-2-1-base are not here; get Stable Diffusion 2.1-base, "
    assert refusal(model_path=str(checkpoint)).startswith(wanted)
    tiny = str(tmp_path / "tiny.safetensors")
    save(build(TINY), TINY, Path(tiny), {})
    assert refusal(model_path=tiny, clip_iqa_path=__file__).startswith(wanted)
    told = refusal(model_path=str(checkpoint), base_path=str(tmp_path))
    assert told.startswith(f"Ultra: the base model folder {tmp_path} lacks unet/config.json, ")
    assert "stabilityai/stable-diffusion-2-1-base" in told
