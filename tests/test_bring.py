"""``vsvsr weights add``: the authors' files by their layout, made here with other values."""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import vapoursynth as vs
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel
from typer.testing import CliRunner

from tests.pixels import play, same
from tests.ultra_files import released_state, single_file_state
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
    monkeypatch.setattr("vsvsr.models.ultra.single_file.FULL", TINY)
    monkeypatch.setattr(checkpoints, "load_released", partial(checkpoints.load_released, config=TINY))
    monkeypatch.setattr("vsvsr.filters.bring.released_tensors", partial(checkpoints.released_tensors, config=TINY))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


@pytest.fixture(autouse=True, name="cache")
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSVSR_WEIGHTS_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def values_of(make: Callable[[], torch.nn.Module]) -> State:
    """Small random values for the state dict of a network."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = make().state_dict()
    return {name: torch.randn(value.shape) * 0.02 for name, value in shapes.items()}


def made_once(make: Callable[[], State]) -> Callable[[], State]:
    """The same tensors at every call, in dicts that a test may change."""
    made = cache(make)

    def copied(value: object) -> Any:
        return {key: copied(inner) for key, inner in value.items()} if isinstance(value, dict) else value

    return lambda: copied(made())


@made_once
def mia_state() -> State:
    """The authors' layout: unused layers of each module, and the index of the bias tables."""
    state = values_of(SMALL_MIA)
    for name in [name for name in state if name.endswith("relative_position_bias_table")]:
        state[name.replace("bias_table", "index")] = relative_position_index(8)
    for module in ("backward_1", "forward_1", "backward_2", "forward_2"):
        state[f"patch_align.{module}.conv_first.weight"] = torch.zeros(12, 3, 3, 3)
        state[f"patch_align.{module}.conv_first_feat.bias"] = torch.zeros(12)
    return {"params": state}


@made_once
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


@made_once
def clip_state() -> State:
    torch.manual_seed(0)
    state: State = dict(clip_iqa.ClipIQA().state_dict())
    return {
        **state,
        "visual.attnpool.positional_embedding": torch.zeros(50, 2048),
        "input_resolution": torch.tensor(224),
    }


@made_once
def x4plus_state() -> State:
    return {"params_ema": values_of(SMALL_X4PLUS)}


@made_once
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


def test_ultra_runs_without_a_path_once_its_weights_were_brought(
    tmp_path: Path, bikes: vs.VideoNode, base_folder: Path
) -> None:
    clip = bikes[:1].resize.Bicubic(width=16, height=16)
    ultra = partial(vs.core.vsvsr.Ultra, clip, device_index=-1)
    folder, checkpoint = base_folder, tmp_path / "model_UltraVSR.pkl"
    torch.save(ultra_state(), checkpoint)
    for missing, file in (("UltraVSR", checkpoint), ("stable-diffusion-2-1-base", folder)):
        with pytest.raises(vs.Error, match=f"^Ultra: weights {missing} are not here; get .*: vsvsr weights add FILE$"):
            ultra()
        bring(file)
    played = play(ultra(prompt="a b"))
    paths = {"model_path": str(checkpoint), "base_path": str(folder)}
    assert same(played, play(ultra(prompt="a b", **paths)))


def test_a_base_folder_is_copied_and_its_pickled_tensors_are_converted(
    tmp_path: Path, cache: Path, base_folder: Path
) -> None:
    folder = Path(shutil.copytree(base_folder, tmp_path / "base"))
    unet = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save(unet, folder / "unet/diffusion_pytorch_model.bin")
    brought = bring(folder)
    stored = load_file(brought.path / "unet/diffusion_pytorch_model.safetensors")
    assert stored.keys() == unet.keys()
    assert all(torch.equal(stored[name], value) for name, value in unet.items())
    assert bring(folder).path == brought.path == cache / "stable-diffusion-2-1-base"
    assert [path.name for path in cache.iterdir()] == ["stable-diffusion-2-1-base"]


def test_another_stable_diffusion_or_a_broken_one_is_refused_by_name(
    tmp_path: Path, cache: Path, base_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(base_folder, tmp_path / "base"))
    unet, config = folder / "unet/diffusion_pytorch_model.safetensors", folder / "unet/config.json"
    tensors: dict[str, Tensor] = load_file(unet)
    save_file({**tensors, "conv_in.bias": torch.zeros(7)}, unet)
    with pytest.raises(UserError, match=r"conv_in\.bias has shape \(7,\), \(16,\) is expected"):
        bring(folder)
    save_file({**tensors, "stranger": torch.zeros(1)}, unet)
    brought = bring(folder)
    assert brought.left_out == ("stranger",)
    base.load_base(brought.path)
    (said,) = caplog.messages
    assert said.endswith("1 entries are no part of the unet of Stable Diffusion and not used (stranger)")
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


@pytest.fixture
def vocabulary(monkeypatch: pytest.MonkeyPatch) -> Path:
    """CLIP's vocabulary, as it is published, in the cache folder of the test."""
    with monkeypatch.context() as usual:
        usual.delenv("VSVSR_WEIGHTS_DIR")
        published = weights.install("clip-vocabulary")
    return weights.install("clip-vocabulary", local=published)


def tower(vocabulary: int = 49408) -> CLIPTextModel:
    torch.manual_seed(3)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=1,
            hidden_act="gelu",
        )
    )


def test_a_single_file_of_stable_diffusion_becomes_the_folder_that_it_was_made_of(
    tmp_path: Path, cache: Path, vocabulary: Path
) -> None:
    torch.manual_seed(1)
    network, text, path = build(TINY), tower(), tmp_path / "v2-1_512-ema-pruned.safetensors"
    state = single_file_state(network, text)
    save_file({name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}, path)
    brought = bring(path)
    assert (brought.name, brought.path, brought.left_out) == (
        "stable-diffusion-2-1-base",
        cache / "stable-diffusion-2-1-base",
        (),
    )
    for part, made in zip((network.unet, network.vae), base.load_base(brought.path), strict=True):
        assert part.state_dict().keys() == made.state_dict().keys()
        for name, value in part.state_dict().items():
            assert torch.equal(made.state_dict()[name], value), name
    # The tokens that CLIP's own code gives, padded with 0.
    tokens = base.tokenise(brought.path, ["a photo of a cat!"])
    assert tokens[0, :9].tolist() == [49406, 320, 1125, 539, 320, 2368, 256, 49407, 0]
    with torch.no_grad():
        expected = text(tokens)[0]
    torch.testing.assert_close(base.encode_prompt(brought.path, "a photo of a cat!"), expected, rtol=0, atol=1e-6)


def test_a_single_file_is_refused_where_it_may_be_another_network_or_lacks_something(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, vocabulary: Path
) -> None:
    path = tmp_path / "sd.ckpt"
    state = single_file_state(build(TINY), tower())

    def refused(content: State, name: str = "stable-diffusion-2-1-base") -> str:
        torch.save({"global_step": 1, "state_dict": content}, path)
        with pytest.raises(UserError) as caught:
            bring(path, name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert refused(state, "").endswith("say so with --name stable-diffusion-2-1-base")
    key = "model.diffusion_model.output_blocks.5.0.in_layers.2.weight"
    assert " lacks up_blocks.2.resnets.1.conv1.weight" in refused({k: v for k, v in state.items() if k != key})
    key = "cond_stage_model.model.transformer.resblocks.0.ln_1.bias"
    found = refused({k: v for k, v in state.items() if k != key})
    assert found.startswith(
        f"weights file {path} is not a checkpoint of the text_encoder of Stable Diffusion: it lacks"
    )
    assert found.endswith(" encoder.layers.0.layer_norm1.bias")
    assert "has shape (1, 2)" in refused({**state, "first_stage_model.quant_conv.weight": torch.zeros(1, 2)})
    assert [entry.name for entry in cache.iterdir()] == [vocabulary.name]
    strange = {**state, "first_stage_model.stranger": torch.ones(2), "loss.weight": torch.ones(3)}
    torch.save({"state_dict": strange}, path)
    assert bring(path, "stable-diffusion-2-1-base").left_out == ("first_stage_model.stranger", "loss.weight")
    vocabulary.unlink()
    assert refused(state) == ("weights clip-vocabulary are not installed; run: vsvsr weights install clip-vocabulary")


class Traced(torch.nn.Module):
    """CLIP as OpenAI traced it: every parameter under its name, and its sizes as buffers."""

    def __init__(self, clip: torch.nn.Module) -> None:
        super().__init__()
        for name, child in clip.named_children():
            self.add_module(name, child)
        for name, parameter in clip.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.register_buffer("input_resolution", torch.tensor(224))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.get_submodule("visual")(pictures)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def torchscript(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """An archive in half precision as OpenAI's, and what it holds."""
    torch.manual_seed(0)
    clip = SMALL_CLIP()
    for parameter in clip.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    traced = torch.jit.trace(Traced(clip.eval()), torch.rand(1, 3, 32, 32), check_trace=False).half()
    path = tmp_path_factory.mktemp("clip") / "RN50.pt"
    traced.save(str(path))
    return path, traced.state_dict()


def test_openais_archive_of_clip_is_brought_and_its_code_is_not_run(
    torchscript: tuple[Path, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, state = torchscript
    monkeypatch.setattr(torch.jit, "load", None)
    assert weights.read_tensors(path)[0].keys() == state.keys()
    brought = bring(path)
    assert (brought.name, brought.left_out) == ("CLIP-RN50", ())
    stored = load_file(brought.path)
    assert stored.keys() == state.keys() - {"input_resolution"}
    for name, value in stored.items():
        assert torch.equal(value, state[name].to(value.dtype)), name


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None], how: int = 0) -> Path:
    """An archive with other entries; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", how) as new:
        for entry in old.infolist():
            content = change(entry.filename, old.read(entry))
            if content is not None:
                new.writestr(entry.filename, content)
    return target


class _Calls:
    """Is pickled as a call of what is no module of TorchScript."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("intruder-was-here"),))


def test_archives_that_want_more_than_tensors_are_refused_in_one_line(
    torchscript: tuple[Path, dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, target = torchscript[0], tmp_path / "RN50.pt"

    def refused(content: Callable[[str, bytes], bytes | None], how: int = 0) -> None:
        rewritten(path, target, content, how)
        with pytest.raises(UserError, match=r"^weights file [^\n]*RN50\.pt [^\n]*$"):
            bring(target)

    def structure(content: bytes) -> Callable[[str, bytes], bytes]:
        return lambda name, old: content if name.endswith("data.pkl") else old

    refused(structure(pickle.dumps(_Calls(), protocol=2)))
    refused(structure(pickle.dumps(_Calls(), protocol=4)))
    refused(structure(b"\x80\x02c__torch__.os\nsystem\n(X\x04\x00\x00\x00touctR."))
    refused(lambda name, old: None if name.endswith("/data/3") else old)
    refused(lambda name, old: old[:-8] if name.endswith("/data/3") else old)
    refused(lambda name, old: old[: len(old) // 2] if name.endswith("data.pkl") else old)
    refused(lambda name, old: old, zipfile.ZIP_DEFLATED)
    assert not (tmp_path / "intruder-was-here").exists()


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
