"""``vsvsr weights add``: the authors' files by their layout, made here with other values."""

import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import vapoursynth as vs
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from tests.pixels import play, same
from tests.ultra_files import released_state, write_base_folder
from vsvsr import weights
from vsvsr.cli import doctor
from vsvsr.cli.weights import app
from vsvsr.errors import UserError
from vsvsr.filters.bring import bring
from vsvsr.models.basicvsr import BasicVSR
from vsvsr.models.mia import MIAVSR
from vsvsr.models.mia.block import relative_position_index
from vsvsr.models.realesrgan import RRDBNet, create
from vsvsr.models.ultra import TINY, base, build, checkpoints, clip_iqa

State = dict[str, Any]

_CLIP = clip_iqa.ClipIQA
SMALL_MIA = partial(MIAVSR, 12, (1,), (2,), 8)
SMALL_CLIP = partial(clip_iqa.ClipIQA, layers=(1, 1), width=16, outputs=64, text_width=64, text_layers=1, vocabulary=6)
SMALL_X4PLUS = partial(RRDBNet, 8, 1, 4)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks in place of the published ones, whose files have up to 4 GB and take minutes a frame."""
    monkeypatch.setattr("vsvsr.models.mia.checkpoints.PUBLISHED", SMALL_MIA)
    monkeypatch.setattr(clip_iqa, "ClipIQA", SMALL_CLIP)
    monkeypatch.setattr("vsvsr.models.realesrgan.checkpoints.create", lambda name: SMALL_X4PLUS())
    monkeypatch.setattr(base, "FULL", TINY)
    monkeypatch.setattr(checkpoints, "load_released", partial(checkpoints.load_released, config=TINY))
    monkeypatch.setattr("vsvsr.filters.bring.released_tensors", partial(checkpoints.released_tensors, config=TINY))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSVSR_WEIGHTS_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def values_of(make: Callable[[], torch.nn.Module]) -> State:
    """Small random values for the state dict of a network."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = make().state_dict()
    return {name: torch.randn(value.shape) * 0.02 for name, value in shapes.items()}


def mia_state() -> State:
    """The authors' layout: unused layers of each module, and the index of the bias tables."""
    state = values_of(SMALL_MIA)
    for name in [name for name in state if name.endswith("relative_position_bias_table")]:
        state[name.replace("bias_table", "index")] = relative_position_index(8)
    for module in ("backward_1", "forward_1", "backward_2", "forward_2"):
        state[f"patch_align.{module}.conv_first.weight"] = torch.zeros(12, 3, 3, 3)
        state[f"patch_align.{module}.conv_first_feat.bias"] = torch.zeros(12)
    return {"params": state}


def realbasicvsr_state() -> State:
    """OpenMMLab's layout, with the network that cleans and both sets of weights."""
    own = {}
    for name, value in values_of(partial(BasicVSR, 64, 20)).items():
        name = name.replace("_trunk.", "_resblocks.").replace("upconv", "upsample")
        if name.startswith("upsample"):
            name = name.replace(".", ".upsample_conv.", 1)
        if name.startswith("spynet.basic_module"):
            place, layer, kind = name.removeprefix("spynet.basic_module.").replace("basic_module.", "").split(".")
            name = f"spynet.basic_module.{place}.basic_module.{int(layer) // 2}.conv.{kind}"
        own[name] = value
    averaged = {f"generator_ema.basicvsr.{name}": value for name, value in own.items()}
    plain = {f"generator.basicvsr.{name}": torch.zeros_like(value) for name, value in own.items()}
    return {"meta": {"mmcv": "1"}, "state_dict": {**plain, **averaged, "generator.image_cleaning.0": torch.ones(1)}}


def clip_state() -> State:
    torch.manual_seed(0)
    state: State = dict(clip_iqa.ClipIQA().state_dict())
    return {
        **state,
        "visual.attnpool.positional_embedding": torch.zeros(50, 2048),
        "input_resolution": torch.tensor(224),
    }


def x4plus_state() -> State:
    return {"params_ema": values_of(SMALL_X4PLUS)}


def ultra_state() -> State:
    torch.manual_seed(2)
    return released_state(build(TINY), rank=2)


LAYOUTS: dict[str, tuple[str, Callable[[], State], str]] = {
    "MIAVSR_REDS_x4": ("MIAVSR_REDS_x4.pth", mia_state, "conv_first.weight"),
    "RealBasicVSR_x4": ("RealBasicVSR_x4.pth", realbasicvsr_state, "generator_ema.basicvsr.fusion.weight"),
    "CLIP-RN50": ("clip.pt", clip_state, "visual.layer2.0.conv3.weight"),
    "RealESRGAN_x4plus": ("RealESRGAN_x4plus.pth", x4plus_state, "conv_body.weight"),
    "UltraVSR": ("model_UltraVSR.pkl", ultra_state, "video_up_RTS_blocks.1.RTSConv.conv1.weight"),
}
"""By name: the published file's name, what makes its content, and one of its tensors."""


def holder(content: State, tensor: str) -> State:
    """The dict in a checkpoint that holds ``tensor``."""
    if tensor in content:
        return content
    inner = (holder(value, tensor) for value in content.values() if isinstance(value, dict))
    return next((found for found in inner if found), {})


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_layout_is_recognised_and_stored_as_safetensors_under_its_name(
    name: str, tmp_path: Path, cache: Path
) -> None:
    file, make, tensor = LAYOUTS[name]
    content = make()
    torch.save(content, tmp_path / file)
    brought = bring(tmp_path / file)
    assert (brought.name, brought.left_out) == (name, ())
    assert brought.path == cache / f"{name}.safetensors" == weights.verify(name)
    assert [path.name for path in cache.iterdir()] == [f"{name}.safetensors"]
    stored = load_file(brought.path)
    found = next(key for key in stored if f".{tensor}".endswith(f".{key}") or key.endswith(f".{tensor}"))
    assert torch.equal(stored[found], holder(content, tensor)[tensor])


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_missing_or_of_another_shape_is_refused_by_name_and_what_is_too_much_is_left_out(
    name: str, tmp_path: Path, cache: Path
) -> None:
    file, make, tensor = LAYOUTS[name]
    content = make()
    tensors = holder(content, tensor)
    path, value = tmp_path / file, tensors.pop(tensor)
    shown = tensor.removeprefix("generator_ema.basicvsr.")
    torch.save(content, path)
    with pytest.raises(UserError, match=rf"{path}.* lacks {shown}"):
        bring(path)
    tensors[tensor] = value.new_zeros(3, *value.shape)
    torch.save(content, path)
    with pytest.raises(UserError, match=rf"{path}.*{shown} .*has shape \(3, "):
        bring(path)
    assert not cache.exists() or list(cache.iterdir()) == []
    tensors[tensor] = value
    tensors[tensor.replace(shown, "stranger")] = torch.ones(2)
    torch.save(content, path)
    run = CliRunner().invoke(app, ["add", str(path)])
    assert run.exit_code == 0, run.exception
    assert run.stdout == f"{name}: {cache / f'{name}.safetensors'}\n"
    assert run.stderr.count("\n") == 1
    assert f"1 entries are no part of {name} and not used (" in run.stderr
    assert not any("stranger" in key for key in load_file(weights.verify(name)))


def test_the_networks_that_files_are_compared_with_are_the_published_ones() -> None:
    with torch.device("meta"):
        mia, clip, x4plus = MIAVSR(), _CLIP(), create("realesrgan-x4plus")
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (mia, clip, x4plus)]
    # The authors' file has 567,136 parameters more, which are not used; CLIP's position embedding is not, either.
    assert counts == [16_596_719 - 567_136, 102_007_137 - 50 * 2048, 16_697_987]


def test_two_names_of_one_layout_are_told_apart_by_the_files_name_or_by_the_user(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "downloaded.pth"
    torch.save(mia_state(), path)
    with pytest.raises(UserError, match="can be MIAVSR_REDS_x4 or MIAVSR_Vid4_x4; say which with --name"):
        bring(path)
    with pytest.raises(UserError, match="name='UltraVSR' is not possible; allowed: MIAVSR_REDS_x4 or MIAVSR_Vid4_x4"):
        bring(path, "UltraVSR")
    assert bring(path, "MIAVSR_Vid4_x4").path == cache / "MIAVSR_Vid4_x4.safetensors"


def test_a_file_that_the_manifest_knows_is_adopted_as_it_is(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as usual:
        usual.delenv("VSVSR_WEIGHTS_DIR")
        published = weights.install("BasicVSR_REDS4")
    copy = tmp_path / "whatever.bin"
    copy.write_bytes(published.read_bytes())
    assert bring(copy).name == "BasicVSR_REDS4"
    assert weights.verify("BasicVSR_REDS4") == cache / "BasicVSR_REDS4.pth"


class _Opens:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["MIAVSR_REDS_x4.pth", "model_UltraVSR.pkl", "a.safetensors", "RN50.pt"])
def test_a_pickle_that_would_run_code_is_refused_and_nothing_is_stored(name: str, tmp_path: Path, cache: Path) -> None:
    path, proof = tmp_path / name, tmp_path / "proof"
    for content in ({"params": _Opens(proof)}, {"state_dict_unet": _Opens(proof), "rank_unet": 4}):
        torch.save(content, path)
        with pytest.raises(UserError, match=r"^weights file [^\n]*$"):
            bring(path)
    path.write_bytes(pickle.dumps(_Opens(proof), protocol=2))
    with pytest.raises(UserError, match=r"^weights file [^\n]*$"):
        bring(path)
    assert not proof.exists()
    assert not cache.exists()


def test_other_files_and_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"is none of those that can be added: [^\n]*MIAVSR_REDS_x4[^\n]*UltraVSR"):
        bring(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"is no folder of Stable Diffusion: it has no unet/config\.json"):
        bring(tmp_path)
    with pytest.raises(UserError, match=r"nothing\.pth does not exist"):
        bring(tmp_path / "nothing.pth")


def test_mia_runs_without_a_path_once_its_weights_were_brought(tmp_path: Path, bikes: vs.VideoNode) -> None:
    clip = bikes[:3].resize.Bicubic(width=16, height=16)
    with pytest.raises(vs.Error) as caught:
        vs.core.vsvsr.MIA(clip, device_index=-1)
    assert str(caught.value) == (
        "MIA: weights MIAVSR_REDS_x4 are not here; get MIAVSR_REDS_x4.pth, linked at github.com/LabShuHangGU/MIA-VSR, "
        "then run: vsvsr weights add FILE"
    )
    path = tmp_path / "MIAVSR_REDS_x4.pth"
    torch.save(mia_state(), path)
    bring(path)
    played = play(vs.core.vsvsr.MIA(clip, device_index=-1))
    assert same(played, play(vs.core.vsvsr.MIA(clip, model_path=str(path), device_index=-1)))


def test_ultra_runs_without_a_path_once_its_weights_were_brought(tmp_path: Path, bikes: vs.VideoNode) -> None:
    clip = bikes[:1].resize.Bicubic(width=16, height=16)
    ultra = partial(vs.core.vsvsr.Ultra, clip, device_index=-1)
    folder, checkpoint = tmp_path / "base", tmp_path / "model_UltraVSR.pkl"
    write_base_folder(folder)
    torch.save(ultra_state(), checkpoint)
    for missing, file in (("UltraVSR", checkpoint), ("stable-diffusion-2-1-base", folder)):
        with pytest.raises(vs.Error, match=f"^Ultra: weights {missing} are not here; get .*: vsvsr weights add FILE$"):
            ultra()
        bring(file)
    played = play(ultra(prompt="a b"))
    paths = {"model_path": str(checkpoint), "base_path": str(folder)}
    assert same(played, play(ultra(prompt="a b", **paths)))


def test_a_base_folder_is_copied_and_its_pickled_tensors_are_converted(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "base"
    write_base_folder(folder)
    unet = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save(unet, folder / "unet/diffusion_pytorch_model.bin")
    brought = bring(folder)
    stored = load_file(brought.path / "unet/diffusion_pytorch_model.safetensors")
    assert stored.keys() == unet.keys()
    assert all(torch.equal(stored[name], value) for name, value in unet.items())
    assert bring(folder).path == brought.path == cache / "stable-diffusion-2-1-base"
    assert [path.name for path in cache.iterdir()] == ["stable-diffusion-2-1-base"]


def test_another_stable_diffusion_or_a_broken_one_is_refused_by_name(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "base"
    write_base_folder(folder)
    unet, config = folder / "unet/diffusion_pytorch_model.safetensors", folder / "unet/config.json"
    tensors: dict[str, Tensor] = load_file(unet)
    save_file({**tensors, "conv_in.bias": torch.zeros(7)}, unet)
    with pytest.raises(UserError, match=r"conv_in\.bias has shape \(7,\), \(16,\) is expected"):
        bring(folder)
    save_file({**tensors, "stranger": torch.zeros(1)}, unet)
    assert bring(folder).left_out == ("stranger",)
    save_file({name: value for name, value in tensors.items() if name != "conv_in.bias"}, unet)
    with pytest.raises(UserError, match=r"it lacks conv_in\.bias"):
        bring(folder)
    wide = build(TINY).unet.from_config({**json.loads(config.read_text()), "cross_attention_dim": 24})
    wide.save_pretrained(folder / "unet")
    with pytest.raises(
        UserError, match=r"is another Stable Diffusion: its cross_attention_dim is 24, that of .* is 16"
    ):
        bring(folder)
    assert bring.__module__ == "vsvsr.filters.bring"
    assert (cache / "stable-diffusion-2-1-base").is_dir()


def test_list_doctor_and_verify_know_what_is_to_be_brought(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def state(command: str) -> str:
        output = CliRunner().invoke(app, [command] if command == "list" else [command, "RealESRGAN_x4plus"])
        return next((line for line in output.stdout.splitlines() if "RealESRGAN_x4plus" in line), str(output.exception))

    def found() -> str:
        return next(finding.state for finding in doctor._weights() if finding.subject.endswith("RealESRGAN_x4plus"))

    assert state("list").endswith("to be brought")
    assert found().endswith("then run: vsvsr weights add FILE")
    assert state("install").endswith("then run: vsvsr weights add FILE")
    torch.save(x4plus_state(), tmp_path / "RealESRGAN_x4plus.pth")
    bring(tmp_path / "RealESRGAN_x4plus.pth")
    assert state("list").endswith("added")
    assert found() == "added"
    assert state("verify") == "RealESRGAN_x4plus: added; every tensor was checked then"
