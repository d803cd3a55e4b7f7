"""Training of SkipVSR's backbone and estimators together."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tests.noise import moving_noise
from vsvsr.errors import UserError
from vsvsr.models.skipvsr import SkipVSR, load
from vsvsr.models.skipvsr.gate import Tally
from vsvsr.ops.block_skip import SkipGrid
from vsvsr.training.data.clips import Crops
from vsvsr.training.harness import Processes, train
from vsvsr.training.recipes import skip
from vsvsr.training.recipes.skip import Pair, Settings, Skip, losses
from vsvsr.weights import Weights

ALONE = Processes(torch.device("cpu"))
SETTINGS = Settings(
    data=Path(),
    validation=Path(),
    run=Path(),
    frames=3,
    crop=36,
    batch=1,
    steps=3,
    alignment=2,
    dense_share=0.0,
    learning_rate=1e-3,
    save_minutes=0,
    validation_crops=1,
)


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Crops:
    """Two clips of noise that moves."""
    return Crops(moving_noise(tmp_path_factory.mktemp("clips"), side=160, step=2), frames=3, crop=36)


@pytest.fixture(autouse=True)
def quick_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skip, "_CALIBRATION", 1)


def tiny(*, hold: bool = False, stride: int = 1) -> SkipVSR:
    """A network whose blocks do something, with estimators that decide differently from tile to tile."""
    torch.manual_seed(0)
    network = SkipVSR(8, 4, hold=hold, stride=stride)
    for trunk in (network.backward_trunk, network.forward_trunk):
        for parameter in trunk.main[2].parameters():
            parameter.data.mul_(3)
    for estimator in (network.estimator_backward, network.estimator_forward):
        estimator.weight.data.fill_(-2.0)
        estimator.bias.data.fill_(0.5)
    network.kappa.fill_(2.0)
    return network.eval()


def moving() -> Tensor:
    """Frames ``(1, 3, 3, 40, 52)`` that change more on the right."""
    generator = torch.Generator().manual_seed(1)
    first, noise = torch.rand(2, 1, 3, 3, 40, 52, generator=generator)
    return 0.7 * first[:, :1] + 0.3 * torch.linspace(0, 1, 52) * noise


def middle_threshold(network: SkipVSR, frames: Tensor) -> float:
    """A threshold at which about half of the tiles run."""
    network.threshold = 0.0
    passes = Pair(network, network, alignment=0).propagate(frames)
    executions = [
        network.gate(direction).execution(frame.changes).flatten()
        for direction, made in passes.items()
        for frame in made.frames[1:]
    ]
    return float(torch.cat(executions).detach().median())


def test_the_target_of_a_confidence_is_its_equation() -> None:
    features, target = torch.zeros(1, 2, 4, 6), torch.zeros(1, 2, 4, 6)
    target[0, 0, :, :4] = 3.0
    target[0, 1, :, 4:] = 0.5
    # Tiles of 4: the second one is cut to two columns. sqrt(9 / 2) and sqrt(0.25 / 2).
    costs = skip.tile_distance(features, target, 4)
    torch.testing.assert_close(costs, torch.tensor([[[4.5**0.5, 0.125**0.5]]]))
    confidence = skip.mask_target(costs, torch.tensor(0.5))
    expected = 1 - np.tanh(0.5 * np.array([[[4.5**0.5, 0.125**0.5]]]))
    np.testing.assert_allclose(confidence.numpy(), expected, rtol=1e-6)


def test_blocks_are_judged_by_the_next_multiple_of_six() -> None:
    layers = [skip.target_layer(m, 30) for m in range(30)]
    assert layers == [6] * 6 + [12] * 6 + [18] * 6 + [24] * 6 + [30] * 6
    assert skip.target_layer(7, 10) == 10


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("hold", [True, False])
def test_training_decides_and_computes_as_inference_does(
    hold: bool, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SkipGrid, "runs_everywhere", lambda grid, count: False)
    network, frames = tiny(hold=hold, stride=stride), moving()
    network.threshold = middle_threshold(network, frames)
    passes = Pair(network, network, alignment=0).propagate(frames)
    network.tally = Tally()
    with torch.no_grad():
        expected = list(network.passes(frames.unbind(1), range(3)))
    for i, states in enumerate(expected):
        result = torch.cat([passes[direction].states[i] for direction in skip.DIRECTIONS], dim=1)
        torch.testing.assert_close(result, states, atol=1e-5, rtol=1e-5)
    active = torch.cat([frame.active.flatten() for made in passes.values() for frame in made.frames[1:]])
    per_frame = 2 * 4 * 12
    blocks = [1] * 4 if stride == 1 else [3, 1]
    executed = sum(
        int(frame.active[d].sum()) * count
        for made in passes.values()
        for frame in made.frames[1:]
        for d, count in enumerate(blocks)
    )
    assert network.tally.executed == executed + per_frame
    assert 0.2 < active.float().mean() < 0.8


def gradients(name: str) -> tuple[SkipVSR, SkipVSR]:
    """Student and teacher after the backward pass of one term."""
    network, teacher, frames = tiny(), tiny(), moving()
    network.threshold = middle_threshold(network, frames)
    teacher.requires_grad_(False)
    network.spynet.requires_grad_(False)
    truth = torch.rand(1, 3, 3, 160, 208, generator=torch.Generator().manual_seed(2))
    terms, _ = losses(Pair(network, teacher, alignment=2), frames, truth)
    terms[name].backward()  # type: ignore[no-untyped-call]
    return network, teacher


@pytest.mark.parametrize(
    ("name", "reached"),
    [
        ("loss", ("backward_trunk", "forward_trunk", "fusion", "upconv1", "conv_last", "estimator")),
        ("error", ("backward_trunk", "forward_trunk", "estimator")),
        ("mask", ("estimator",)),
    ],
)
def test_each_loss_reaches_what_it_shall_train(name: str, reached: tuple[str, ...]) -> None:
    network, teacher = gradients(name)
    for key, parameter in network.named_parameters():
        touched = parameter.grad is not None and bool(parameter.grad.any())
        if key.startswith(reached):
            assert touched, key
        elif name != "loss" or key.startswith("spynet"):
            assert not touched, key
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_student_that_is_not_skipped_is_its_teacher() -> None:
    network, teacher, frames = tiny(), tiny(), moving()
    truth = torch.rand(1, 3, 3, 160, 208)
    terms, _ = losses(Pair(network, teacher, alignment=1), frames, truth)
    assert terms["executed"] == 1
    assert float(terms["error"].detach()) < 1e-10
    network.threshold = middle_threshold(network, frames)
    terms, _ = losses(Pair(network, teacher, alignment=1), frames, truth)
    assert 0.2 < terms["executed"] < 0.8
    assert float(terms["error"].detach()) > 1e-6
    terms, _ = losses(Pair(network, teacher, alignment=0), frames, truth)
    assert "error" not in terms


@pytest.mark.parametrize("hold", [True, False])
def test_checkpointing_changes_no_gradient(hold: bool) -> None:
    frames, truth = moving(), torch.rand(1, 3, 3, 160, 208, generator=torch.Generator().manual_seed(3))
    found = []
    for checkpointing in (False, True):
        network = tiny(hold=hold)
        network.threshold = middle_threshold(network, frames)
        terms, _ = losses(Pair(network, tiny(), alignment=2, checkpointing=checkpointing), frames, truth)
        (terms["loss"] + terms["mask"] + terms["error"]).backward()  # type: ignore[no-untyped-call]
        found.append([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    assert len(found[0]) == len(found[1]) > 20
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, plain, atol=1e-7, rtol=1e-4)


def trained(crops: Crops, settings: Settings) -> Skip:
    recipe = Skip(tiny(), settings, training=crops, validation=crops, processes=ALONE)
    train(recipe, settings, steps=settings.steps, processes=ALONE)
    return recipe


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    crops: Crops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = trained(crops, replace(SETTINGS, run=tmp_path / "straight"))
    step = Skip.step

    def interrupt(self: Skip, number: int) -> dict[str, float]:
        if number == 2:
            raise KeyboardInterrupt
        return step(self, number)

    settings = replace(SETTINGS, run=tmp_path / "resumed")
    with monkeypatch.context() as patch:
        patch.setattr(Skip, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trained(crops, settings)
    torch.manual_seed(7)
    resumed = trained(crops, settings)
    for name, value in straight.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], value), name
    before = tiny().state_dict()
    for name in ("forward_trunk.main.2.0.conv1.weight", "fusion.weight", "estimator_forward.weight", "quantiles"):
        assert not torch.equal(straight.network.state_dict()[name], before[name]), name
    assert torch.equal(
        straight.network.state_dict()["spynet.basic_module.0.basic_module.0.weight"],
        before["spynet.basic_module.0.basic_module.0.weight"],
    )
    # What was exported says what a skipped block does, and runs as it was trained.
    loaded = load(tmp_path / "resumed" / "last.safetensors", threshold=0.5).network
    assert not loaded.hold
    assert loaded.stride == 1
    averaged = resumed.averaged.network.state_dict()
    assert all(torch.equal(value, averaged[name]) for name, value in loaded.state_dict().items())


def test_mixed_precision_decides_as_single_precision_does(crops: Crops, tmp_path: Path) -> None:
    trainer = trained(crops, replace(SETTINGS, run=tmp_path, bf16=True, steps=1))
    assert torch.isfinite(trainer.network.quantiles).all()
    gate = trainer.network.gate("forward")
    change = torch.rand(1, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = gate.execution(change)
    assert torch.equal(mixed, gate.execution(change))


def test_a_step_that_goes_wrong_leaves_weights_and_quantiles_as_they_were(crops: Crops, tmp_path: Path) -> None:
    trainer = trained(crops, replace(SETTINGS, run=tmp_path, steps=1))
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    averaged = {name: value.clone() for name, value in trainer.averaged.network.state_dict().items()}
    with torch.no_grad():
        for parameter in trainer._teacher.parameters():
            parameter.fill_(torch.nan)
    assert not np.isfinite(trainer.step(1)["error"])
    for now, then in ((trainer.network, before), (trainer.averaged.network, averaged)):
        assert all(torch.equal(value, then[name]) for name, value in now.state_dict().items())


def test_without_joint_training_the_backbone_stays(
    crops: Crops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "published.safetensors"
    save_file({name: value.contiguous() for name, value in tiny().state_dict().items()}, published)
    row = Weights(name="Tiny", model="Skip", file=str(published), licence="", origin="here")
    for module in ("vsvsr.weights", "vsvsr.weights.store"):
        monkeypatch.setattr(f"{module}.MANIFEST", (row,))
    settings = replace(SETTINGS, run=tmp_path, frozen=True, steps=1, checkpoint="Tiny")
    frozen = trained(crops, settings)
    changed = {
        name for name, value in tiny().state_dict().items() if not torch.equal(value, frozen.network.state_dict()[name])
    }
    assert {name.partition(".")[0] for name in changed} == {
        "estimator_backward",
        "estimator_forward",
        "kappa",
        "quantiles",
    }
    # The file holds what changed and names the rest, with which it is loaded.
    with safe_open(tmp_path / "last.safetensors", "pt") as file:
        assert set(file.keys()) == changed
        assert file.metadata()["base"] == "Tiny"
    loaded = load(tmp_path / "last.safetensors").network.state_dict()
    averaged = frozen.averaged.network.state_dict()
    assert all(torch.equal(value, averaged[name]) for name, value in loaded.items())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"skipped": "sometimes"}, r"skipped blocks are said to do sometimes; possible are hold and identity$"),
        ({"stride": "0"}, r"stride is 0; possible are 1 to 4$"),
        ({"stride": "9" * 5000}, r"stride is 9+\.\.\.; possible are 1 to 4$"),
    ],
)
def test_metadata_that_cannot_be_is_refused_in_one_line(metadata: dict[str, str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in tiny().state_dict().items()}, path, metadata)
    with pytest.raises(UserError, match=message):
        load(path)
