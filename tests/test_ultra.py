"""UltraVSR: the released temporal shift module, the one-step pipeline, and exact bounded-memory inference."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vsvsr.models.ultra import RTSModule

DATA = Path(__file__).parent / "data"


def random_module(channels: int, seed: int = 0, **sizes: int) -> RTSModule:
    """A module whose zero-initialised layers are drawn too, so that frames do mix."""
    torch.manual_seed(seed)
    module = RTSModule(channels, **sizes)
    for last in (module.RTSConv.conv3, module.RTSAtten.project_out):
        torch.nn.init.normal_(last.weight, std=0.5)
    return module


def test_the_released_temporal_shift_module_gives_its_reference_output() -> None:
    golden = load_file(DATA / "rts_320.safetensors")
    module = RTSModule(320)
    module.load_state_dict({k.removeprefix("model."): v for k, v in golden.items() if k.startswith("model.")})
    with torch.inference_mode():
        after_conv_unit = module.RTSConv(golden["input"])
        output = module(golden["input"])
    assert (after_conv_unit - golden["after_conv_unit"]).abs().max() <= 1e-5
    assert (output - golden["output"]).abs().max() <= 1e-5
    assert (output - golden["input"]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("channels", "conv_unit", "attention_unit"),
    [
        (256, 17_496, 16_872),
        (320, 27_330, 31_448),
        (512, 75_684, 83_128),
        (640, 116_424, 124_328),
        (1280, 465_570, 535_608),
    ],
)
def test_the_units_have_the_published_number_of_parameters(channels: int, conv_unit: int, attention_unit: int) -> None:
    with torch.device("meta"):
        module = RTSModule(channels)
    assert [sum(p.numel() for p in unit.parameters()) for unit in module.units] == [conv_unit, attention_unit]


def test_a_fresh_module_is_the_identity_and_a_trained_one_reaches_two_frames() -> None:
    frames = torch.rand(9, 96, 4, 6)
    changed = frames.clone()
    changed[4] += 1.0
    assert torch.equal(RTSModule(96)(frames), frames)
    module = random_module(96)
    with torch.inference_mode():
        difference = (module(frames) - module(changed)).abs().amax(dim=(1, 2, 3))
    assert difference.nonzero().flatten().tolist() == [2, 3, 4, 5, 6]


def test_the_middle_third_of_the_shift_is_zero_in_the_released_form_only() -> None:
    before, current, after = torch.rand(3, 1, 6, 2, 2) + 1.0
    released = RTSModule(96).RTSConv.shift(before, current, after)
    assert torch.equal(released, torch.cat((before[:, :2], torch.zeros(1, 2, 2, 2), after[:, 4:]), dim=1))
    paper = RTSModule(96, form="paper").RTSConv.shift(before, current, after)
    assert torch.equal(paper, torch.cat((before[:, :2], current[:, 2:4], after[:, 4:]), dim=1))
