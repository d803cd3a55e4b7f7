"""Files are not believed: crafted and damaged weights are refused in one line, within the memory that they deserve."""

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.hostile_files import Subject, attack, attempt, subjects
from vsvsr.errors import UserError
from vsvsr.models import fastreal, mia, realesrgan, skipvsr, ultra
from vsvsr.models.common.blocks import PlainConvolutions
from vsvsr.models.ultra.base import encode_prompt
from vsvsr.models.ultra.checkpoints import load_released

CONFIG = asdict(fastreal.COMPACT)
PREFIX = "patch_align.backward_1.layers."
BLOCK = ".residual_group.blocks.0.attn."


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    return subjects(tmp_path_factory.mktemp("valid"))


def with_settings(config: object, path: Path, *, tensors: dict[str, torch.Tensor] | None = None) -> None:
    """A file of 400 small tensors that says it is a network of these settings."""
    tensors = tensors or {f"rb1.main.2.{i}.conv1.weight": torch.zeros(1, 1, 3, 3) for i in range(400)}
    save_file(tensors, path, {"config": config if isinstance(config, str) else json.dumps(config)})


def deflated(path: Path) -> None:
    source = io.BytesIO()
    torch.save({"params": {"x": torch.zeros(100_000_000, dtype=torch.uint8)}}, source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))


class Makes:
    """Is pickled as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def saved(content: object, path: Path) -> None:
    torch.save({"params": content}, path)


def old_storage_of_8_gb(path: Path) -> None:
    """The form from before PyTorch 1.6, whose structure states the sizes of storages that follow it."""
    torch.save({"params": {"x": torch.zeros(1000)}}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    stated = b"M" + struct.pack("<H", 1000)
    assert data.count(stated) == 2
    path.write_bytes(data.replace(stated, b"J" + struct.pack("<i", 2_000_000_000)))


def table(path: Path) -> None:
    """A MIA network of windows whose index would take 6 GB."""
    rows = 3 * (2 * 128 - 1) ** 2
    save_file(
        {
            "conv_before_upsample.weight": torch.zeros(1, 1, 3, 3),
            f"{PREFIX}0{BLOCK}qkv.weight": torch.zeros(3, 1),
            f"{PREFIX}0{BLOCK}relative_position_bias_table": torch.zeros(rows, 1),
            f"{PREFIX}0{BLOCK}predmask.rnn.weight": torch.zeros(1, 1),
        },
        path,
    )


def wide_features(path: Path) -> None:
    save_file(
        {
            "conv_before_upsample.weight": torch.zeros(1, 20_000, 1, 1),
            f"{PREFIX}0{BLOCK}qkv.weight": torch.zeros(3, 1),
            f"{PREFIX}0{BLOCK}relative_position_bias_table": torch.zeros(675, 2),
            f"{PREFIX}0{BLOCK}predmask.rnn.weight": torch.zeros(1, 1),
        },
        path,
    )


def far_stage(path: Path) -> None:
    save_file({f"{PREFIX}2000000000{BLOCK}qkv.weight": torch.zeros(3, 1)}, path)


UNET = dict(ultra.TINY.unet)
VAE = dict(ultra.TINY.vae)
CRAFTED: dict[str, tuple[Callable[[Path], object], str, Callable[[Path], object], str]] = {
    # what it is: (writes it, its suffix, loads it, what the message says)
    **{
        f"FastReal, {name}": (partial(with_settings, config), ".safetensors", fastreal.load, message)
        for name, config, message in (
            ("a billion blocks", {**CONFIG, "rb2_blocks": 10**9}, "rb2_blocks is 1000000000, which is not possible"),
            ("60,000 blocks", {**CONFIG, "rb2_blocks": 60_000}, "holds too few tensors"),
            ("60,000 plain layers", {**CONFIG, "trunk": "plain", "rb2_blocks": 60_000}, "holds too few tensors"),
            ("9,000 channels", {**CONFIG, "channels": 9000}, "it lacks"),
            ("a long pool", {**CONFIG, "pool": ["mean3"] * 5000}, "each once"),
            ("an unknown filter", {**CONFIG, "pool": ["median"]}, "each once"),
            ("settings of wrong types", {**CONFIG, "channels": "many"}, "channels is 'many', which is not possible"),
            ("an unhashable setting", {**CONFIG, "hsa": []}, r"hsa is \[\], which is not possible"),
            ("an unknown setting", {**CONFIG, "depth": 3}, "unknown network setting depth"),
            ("a list of settings", [], "its network configuration is damaged"),
            ("half of its settings", '{"channels": 3', "its network configuration is damaged"),
            ("settings nested deeply", "[" * 60_000, "its network configuration is damaged"),
            ("a number of many digits", '{"channels": ' + "9" * 60_000 + "}", "its network configuration is damaged"),
            ("long settings", " " * 100_000 + "{}", "its network configuration is damaged"),
        )
    },
    **{
        f"Ultra, {name}": (partial(with_settings, asdict(config)), ".safetensors", ultra.load, message)
        for name, config, message in (
            (
                "8,000 channels",
                replace(ultra.TINY, unet={**UNET, "block_out_channels": [8000] * 4}),
                "it lacks|too few",
            ),
            ("no such channels", replace(ultra.TINY, unet={**UNET, "block_out_channels": "wide"}), "is 'wide', which"),
            ("many layers", replace(ultra.TINY, vae={**VAE, "layers_per_block": 60_000}), "holds too few tensors"),
            ("another kind of block", replace(ultra.TINY, vae={**VAE, "up_block_types": ["Up"] * 4}), "not possible"),
            ("no groups", replace(ultra.TINY, unet={**UNET, "norm_num_groups": 7}), "is not a checkpoint of UltraVSR"),
            ("an odd shift", replace(ultra.TINY, rts_conv_channels=4), "multiples of 3 and 24"),
        )
    },
    "MIA, a far stage": (far_stage, ".safetensors", mia.load, "it lacks patch_align.backward_1.layers"),
    "MIA, wide features": (wide_features, ".safetensors", mia.load, "too few tensors|shape"),
    "MIA, large windows": (table, ".safetensors", mia.load, "even square up to 16x16"),
    "compressed": (deflated, ".pth", skipvsr.load, "is not a PyTorch checkpoint of tensors alone"),
    "an old storage of 8 GB": (old_storage_of_8_gb, ".pth", skipvsr.load, "is not a PyTorch checkpoint"),
    "a tensor of 4 TB in 4 bytes": (
        partial(saved, {"x": torch.zeros(1).expand(10**6, 10**6)}),
        ".pth",
        skipvsr.load,
        "describes more than it holds",
    ),
    "a thousand names of one tensor": (
        partial(saved, dict.fromkeys(map(str, range(1000)), torch.zeros(100_000))),
        ".pth",
        skipvsr.load,
        "describes more than it holds",
    ),
    "a call that makes 8 GB": (
        partial(saved, {"x": Makes(bytearray, 8_000_000_000)}),
        ".pth",
        skipvsr.load,
        "is not a PyTorch checkpoint of tensors alone",
    ),
    "an object": (partial(saved, OrderedDict(x=None)), ".pth", skipvsr.load, "holds no state dict"),
    "names that are no text": (partial(saved, {1: torch.zeros(1)}), ".pth", skipvsr.load, "holds no state dict"),
    "complex numbers": (
        partial(saved, {"x": torch.zeros(1, dtype=torch.complex64)}),
        ".pth",
        skipvsr.load,
        "is not a PyTorch checkpoint|complex",
    ),
    "lists nested deeply": (
        lambda path: path.write_bytes(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
        ".pth",
        skipvsr.load,
        "is not a PyTorch checkpoint of tensors alone",
    ),
    "a pickle of bytes alone": (
        lambda path: path.write_bytes(pickle.dumps(b"")),
        ".pth",
        skipvsr.load,
        "is not a PyTorch checkpoint of tensors alone",
    ),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_file_is_refused_within_the_memory_it_deserves(
    name: str,
    tmp_path: Path,
    valid: dict[str, Subject],  # whose making has imported what loaders import
) -> None:
    write, suffix, load, message = CRAFTED[name]
    path = tmp_path / f"crafted{suffix}"
    write(path)

    def run(_: object) -> None:
        raise AssertionError("was loaded")

    assert attempt(Subject(path, load, run), path)[0] == "refused"  # type: ignore[arg-type]
    assert torch.is_grad_enabled(), "the refusal has left gradients switched off in this thread"
    with pytest.raises(UserError, match=message):
        load(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["fastreal", "skip", "mia", "ultra"])
def test_weights_that_are_not_finite_are_refused(
    kind: str, value: float, valid: dict[str, Subject], tmp_path: Path
) -> None:
    from safetensors import safe_open

    with safe_open(valid[kind].file, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        metadata = file.metadata()
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 4)
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[-1] = value
    path = tmp_path / "spoilt.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(UserError, match=rf"spoilt.safetensors holds values in {name} that are not finite"):
        valid[kind].load(path)


def test_the_base_folder_is_not_believed_either(base_folder: Path, tmp_path: Path, valid: dict[str, Subject]) -> None:
    import shutil

    def spoil(part: str, **settings: Any) -> Path:
        folder = tmp_path / f"{part}{len(list(tmp_path.iterdir()))}"
        shutil.copytree(base_folder, folder)
        path = folder / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
        return folder

    released = valid["ultra released"].file
    for part, settings in (
        ("unet", {"block_out_channels": [8000] * 4}),
        ("unet", {"layers_per_block": 10**9}),
        ("vae", {"block_out_channels": {}}),
    ):
        with pytest.raises(UserError, match=part):
            load_released(released, spoil(part, **settings), ultra.TINY)
    for settings in ({"num_hidden_layers": 60_000}, {"vocab_size": 10**9}, {"hidden_size": "wide"}):
        with pytest.raises(UserError, match="text_encoder"):
            encode_prompt(spoil("text_encoder", **settings), "")
    folder = spoil("unet")
    (folder / "tokenizer/vocab.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="tokenizer"):
        encode_prompt(folder, "")


def test_a_plain_trunk_is_built_layer_by_layer() -> None:
    """So that a construction of very many layers ends at the first that is too many, and not before the first."""

    class Stopped(BaseException):
        pass

    class Counting(torch.overrides.TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += 1
            if self.calls > 100:
                raise Stopped
            return func(*args, **(kwargs or {}))

    with torch.device("meta"), Counting(), pytest.raises(Stopped):
        PlainConvolutions(3, 8, 10**12)


def test_a_published_network_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"params": {"body.0.weight": torch.zeros(64, 3, 3, 3)}}, path)
    with pytest.raises(UserError, match=r"other.pth is not a checkpoint of realesr-animevideov3"):
        realesrgan.load_published("realesr-animevideov3", path)


def test_valid_files_of_every_kind_load_and_run(valid: dict[str, Subject]) -> None:
    for subject in valid.values():
        assert attempt(subject, subject.file)[0] == "works"


def test_damaged_files_of_every_kind_work_or_are_refused_in_one_line() -> None:
    report = attack(seed=1, count=200)
    assert report.outcomes["refused"] > 100
    assert report.outcomes["works"] > 15
