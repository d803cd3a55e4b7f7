"""The filters beside others in one script: on PyTorch, and on ONNX Runtime where its plugin and onnx are installed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import vapoursynth as vs

from tests.cases import WeightsOf, maker
from tests.pixels import play, same


@pytest.fixture
def source(bikes: vs.VideoNode) -> vs.VideoNode:
    return bikes[:16]


@pytest.fixture
def usual_type() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("FastReal", {"tile": (32, 32), "tile_pad": 4}), ("MIA", {}), ("Skip", {"mode": "patch"}), ("Ultra", {})],
)
@pytest.mark.usefixtures("usual_type")
def test_a_default_type_that_a_script_gives_torch_changes_no_pixel(
    name: str, arguments: dict[str, object], dtype: torch.dtype, bikes: vs.VideoNode, weights_of: WeightsOf
) -> None:
    clip, make = bikes[:4].resize.Bilinear(64, 64), maker(name, weights_of(name))
    usual = play(make(clip, **arguments))
    before = make(clip, **arguments)
    torch.set_default_dtype(dtype)
    assert same(play(before), usual)
    with torch.device("meta"):  # nor does a default device
        assert same(play(make(clip, **arguments)), usual)


def upscaled(clip: vs.VideoNode, weights: Path) -> vs.VideoNode:
    return vs.core.vsvsr.FastReal(clip, model_path=str(weights), segment=6, warmup=2, device_index=-1)


def on_torch(clip: vs.VideoNode) -> vs.VideoNode:
    """A filter as others write them: a convolution in a Python callback."""
    torch.manual_seed(3)
    network = torch.nn.Conv2d(3, 3, 3, padding=1)

    def run(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        output = f.copy()
        with torch.inference_mode():
            result = network(torch.from_numpy(np.stack([np.asarray(f[plane]) for plane in range(3)]))[None])[0]
        for plane in range(3):
            np.asarray(output[plane])[:] = result[plane].numpy()
        return output

    return clip.std.ModifyFrame(clip, run)


def test_a_filter_on_pytorch_before_and_beside_changes_nothing_and_is_not_changed(
    source: vs.VideoNode, tiny_fastreal: Path
) -> None:
    settings = (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
    other, alone = play(on_torch(source)), play(upscaled(source, tiny_fastreal))
    both = vs.core.std.Interleave([upscaled(source, tiny_fastreal), on_torch(source).resize.Point(192, 128)])
    assert same({n // 2: found for n, found in play(both, in_flight=4).items() if n % 2 == 0}, alone)
    before = play(upscaled(on_torch(source), tiny_fastreal), in_flight=4)
    assert same(before, play(upscaled(on_torch(source), tiny_fastreal)))
    assert same(play(on_torch(source), in_flight=4), other)
    assert settings == (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())


@pytest.mark.skipif(not hasattr(vs.core, "ort"), reason="vapoursynth-mlrt-ort is not installed")
def test_a_network_on_onnx_runtime_in_the_same_script_changes_nothing(
    source: vs.VideoNode, tiny_fastreal: Path, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    turn = make.make_tensor("w", kind, [3, 3, 1, 1], np.eye(3, dtype=np.float32).ravel().tolist())
    ends = [make.make_tensor_value_info(name, kind, [1, 3, "h", "w_"]) for name in "xy"]
    graph = make.make_graph([make.make_node("Conv", ["x", "w"], ["y"])], "same", ends[:1], ends[1:], [turn])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "same.onnx")
    through = vs.core.ort.Model(source, network_path=str(tmp_path / "same.onnx"))
    assert same(play(upscaled(through, tiny_fastreal), in_flight=4), play(upscaled(source, tiny_fastreal)))
