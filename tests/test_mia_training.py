"""Training of MIA-VSR's masks."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.noise import moving_noise
from vsvsr.errors import UserError
from vsvsr.models.basicvsr import BasicVSR
from vsvsr.models.mia import MIAVSR, MaskSite, load, threshold_gate
from vsvsr.models.mia.block import MaskPredictor
from vsvsr.training.__main__ import main
from vsvsr.training.data.clips import Crops
from vsvsr.training.harness import Processes, train
from vsvsr.training.recipes.mia import MIA, GumbelGate, Settings, _taught, keep_all, load_start, losses, take_head

SITE = MaskSite("backward_1", 1, 0)


def test_the_gumbel_gate_keeps_a_position_with_the_probability_of_its_logit() -> None:
    torch.manual_seed(0)
    logits = torch.tensor((-2.0, 0.0, 1.0))
    gate = GumbelGate()
    mask = gate(SITE, logits[:, None, None].expand(3, 100, 200))
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(mask.mean((1, 2)), logits.sigmoid(), rtol=0, atol=0.01)
    torch.testing.assert_close(gate.sparsity(), mask.mean())


def test_the_gradient_of_the_sparsity_lowers_every_logit() -> None:
    torch.manual_seed(0)
    logits = torch.linspace(-1, 1, 64).view(1, 8, 8).requires_grad_()
    gate = GumbelGate()
    gate(SITE, logits)
    gate.sparsity().backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Crops:
    """Two clips of smooth noise that moves."""
    return Crops(moving_noise(tmp_path_factory.mktemp("clips"), side=96, step=1), frames=2, crop=16)


def tiny() -> MIAVSR:
    torch.manual_seed(0)
    return MIAVSR(8, (1,), (2,), 8)


ALONE = Processes(torch.device("cpu"))
SETTINGS = Settings(
    data=Path(),
    validation=Path(),
    run=Path(),
    frames=2,
    crop=16,
    steps=1,
    mask_steps=2,
    learning_rate=0.01,
    save_minutes=0,
    validation_crops=1,
)


def recipe(crops: Crops, settings: Settings, network: MIAVSR | None = None, teacher: BasicVSR | None = None) -> MIA:
    return MIA(network or tiny(), settings, training=crops, validation=crops, processes=ALONE, teacher=teacher)


def trained(crops: Crops, settings: Settings, network: MIAVSR | None = None) -> MIA:
    """A recipe after its run."""
    result = recipe(crops, settings, network)
    steps = settings.steps + settings.mask_steps
    train(result, settings, steps=steps, processes=ALONE, milestones=[settings.steps])
    return result


def test_a_heavy_sparsity_loss_lowers_the_share_of_kept_positions(crops: Crops) -> None:
    masked = recipe(crops, replace(SETTINGS, steps=0, mask_steps=10, sparsity=10.0, learning_rate=0.03))
    kept = [masked.step(step)["kept_in_training"] for step in range(5)]
    assert abs(kept[0] - 0.5) < 0.05
    # Adam moves every bias by about -0.03 a step: sigmoid(-0.12) = 0.47. The draw is good to 0.004.
    assert kept[-1] < 0.48


def test_the_first_phase_leaves_the_predictors_and_the_flow_alone(crops: Crops, tmp_path: Path) -> None:
    network = tiny()
    before = {name: value.clone() for name, value in network.named_parameters()}
    trained(crops, replace(SETTINGS, mask_steps=0, run=tmp_path), network)
    for name, value in network.named_parameters():
        changed = not torch.equal(value, before[name])
        assert changed == ("predmask" not in name and "spynet" not in name), name
    assert keep_all(SITE, torch.full((1, 2, 2), -9.0)).all()


@pytest.fixture(scope="module")
def straight(crops: Crops, tmp_path_factory: pytest.TempPathFactory) -> MIA:
    """A run that nothing interrupted."""
    return trained(crops, replace(SETTINGS, run=tmp_path_factory.mktemp("straight")))


@pytest.mark.parametrize("interrupted_after", [1, 2])
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    straight: MIA, crops: Crops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted_after: int
) -> None:
    settings = replace(SETTINGS, run=tmp_path)
    step = MIA.step

    def interrupt(self: MIA, number: int) -> dict[str, float]:
        if number == interrupted_after:
            raise KeyboardInterrupt
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(MIA, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trained(crops, settings)
    torch.manual_seed(interrupted_after)
    resumed = trained(crops, settings, MIAVSR(8, (1,), (2,), 8))
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3
    for name, value in straight.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], value), name
    for phase in ("dense", "masked"):
        weights = [load_file(folder / f"{phase}.safetensors") for folder in (straight.settings.run, tmp_path)]
        assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["phase"]) for row in rows] == [("1", "dense"), ("2", "masked"), ("3", "masked")]


def test_exported_weights_are_averages_that_load(straight: MIA) -> None:
    exported = load(straight.settings.run / "masked.safetensors").network
    for (name, value), last in zip(exported.named_parameters(), straight.network.parameters(), strict=True):
        assert torch.equal(value, dict(straight.averaged.network.named_parameters())[name])
        if "spynet" not in name and "predmask" not in name:
            assert not torch.equal(value, last), name


def test_no_gradient_reaches_the_flow_network(crops: Crops) -> None:
    network = tiny().train()
    batch = crops.batch(np.random.default_rng(0), 1)
    losses(network, batch.frames, batch.truth, masked=False)["loss"].backward()
    assert all(parameter.grad is None for parameter in network.spynet.parameters())


def test_mixed_precision_comes_close_to_full(crops: Crops) -> None:
    batch = crops.batch(np.random.default_rng(0), 1)
    values = []
    for bf16 in (False, True):
        network = tiny()
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            terms = losses(network, batch.frames, batch.truth, masked=True)
            loss, kept = terms["loss"], terms["kept_in_training"]
        assert loss.dtype == torch.float32
        values.append((float(loss.detach()), float(kept.detach())))
    assert values[1] == pytest.approx(values[0], rel=0.02)


def test_a_deeper_network_starts_from_a_shallower_one(tmp_path: Path) -> None:
    start, network = MIAVSR(8, (1,), (2,), 8), MIAVSR(8, (1, 2), (2, 2), 8)
    path = tmp_path / "start.safetensors"
    save_file({name: value.contiguous() for name, value in start.state_dict().items()}, path)
    load_start(network, path)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in start.state_dict().items())
    with pytest.raises(UserError, match="does not fit") as caught:
        load_start(MIAVSR(16, (1,), (2,), 8), path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"does not fit: .*layers.0"):
        load_start(MIAVSR(8, (), (), 8), path)


def test_a_mirrored_sequence_comes_back_and_is_what_the_network_is_trained_on(crops: Crops) -> None:
    batch = crops.batch(np.random.default_rng(0), 1)
    mirrored = batch.mirrored()
    for name in ("frames", "truth"):
        once, twice = getattr(batch, name), getattr(mirrored, name)
        assert torch.equal(twice[:, :2], once)
        assert torch.equal(twice[:, 2:], once.flip(1))
    assert mirrored.flows.shape[1] == 3
    seen: list[int] = []
    network = tiny()
    features = network.features
    network.features = lambda frames, *a, **k: seen.append(len(frames)) or features(frames, *a, **k)  # type: ignore
    recipe(crops, replace(SETTINGS, mirror=True), network).step(0)
    assert seen == [4]


def test_the_epsilon_is_under_the_root_of_the_loss(crops: Crops) -> None:
    network, batch = tiny().eval(), crops.batch(np.random.default_rng(0), 1)
    with torch.no_grad():
        inner = (network(batch.frames, gate=keep_all) - batch.truth)[..., 16:-16, 16:-16]
        for epsilon in (1e-12, 0.01):
            loss = losses(network, batch.frames, batch.truth, masked=False, epsilon=epsilon)["loss"]
            torch.testing.assert_close(loss, (inner.square() + epsilon).sqrt().mean())


def test_the_rate_ends_at_a_two_thousandth_of_its_highest(crops: Crops) -> None:
    run = recipe(crops, replace(SETTINGS, steps=2000, mask_steps=0, learning_rate=2e-4))
    assert run.step(0)["learning_rate"] == pytest.approx(2e-4)
    assert run.step(1999)["learning_rate"] == pytest.approx(1e-7, rel=0.01)


def test_a_teacher_gives_its_head_and_its_features_are_learnt(crops: Crops, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = BasicVSR(8, 1).requires_grad_(False)
    network = tiny()
    take_head(network, teacher)
    batch = crops.batch(np.random.default_rng(0), 1)
    frames = batch.frames
    with torch.no_grad():
        # The teacher's pictures are what the shared head makes of its features.
        features = _taught(teacher, frames.unbind(1))
        pictures = [network.reconstruct(x, frame) for x, frame in zip(features, frames.unbind(1), strict=True)]
        assert torch.allclose(torch.stack(pictures, 1), _whole(teacher, frames), atol=1e-5)
        own = torch.stack(list(network.features(frames.unbind(1), range(2), gate=keep_all)))
        terms = losses(network, frames, batch.truth, masked=False, teacher=teacher)
    torch.testing.assert_close(terms["distillation"], (own - features).abs().mean())
    run = recipe(crops, replace(SETTINGS, steps=12, mask_steps=0), network, teacher)
    distances = [run.step(step)["distillation"] for step in range(12)]
    assert distances[-1] < 0.8 * distances[0]
    with pytest.raises(UserError, match="--mid-channels 8 is not possible; allowed with this teacher: 16"):
        take_head(network, BasicVSR(16, 1))


def _whole(teacher: BasicVSR, frames: torch.Tensor) -> torch.Tensor:
    """The teacher's pictures of frames that are smaller than its flow network takes."""
    pictures = list(teacher.upscale(list(frames[0]), range(frames.shape[1])))
    return torch.stack(pictures)[None]


def test_a_crop_of_which_nothing_is_judged_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mia", "clips", "check", "run", "--crop", "8"]) == 1
    assert capsys.readouterr().err == "error: --crop 8 is not possible; allowed: more than 8\n"


def test_a_start_that_cannot_be_had_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, wrong in (("--start", tmp_path / "wrong.safetensors"), ("--flow", tmp_path / "wrong.pth")):
        assert main(["mia", "clips", "check", "run", option, str(wrong)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert str(wrong) in error
    save_file({"spynet.basic_module.0": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert main(["mia", "clips", "check", "run", "--flow", str(tmp_path / "other.safetensors")]) == 1
    assert "other.safetensors holds no SPyNet: " in capsys.readouterr().err


def test_a_handcrafted_mask_keeps_what_changes_by_its_threshold_and_is_never_learnt(
    crops: Crops, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, run=tmp_path, steps=0, mask_steps=2, handcrafted=0.05, sparsity=10.0)
    run = trained(crops, settings)
    network = load(tmp_path / "masked.safetensors").network
    predictors = [part for part in network.modules() if isinstance(part, MaskPredictor)]
    assert len(predictors) == 4
    tokens, change = torch.randn(2, 3, 8), torch.full((2, 3, 8), 0.05)
    change[0] *= torch.tensor((0.99, 1.01, 3.0))[:, None]
    change[1, 0, 1:] = 0.0  # one channel alone
    logits = predictors[0](tokens + change, tokens)
    assert threshold_gate(SITE, logits)[0].tolist() == [False, True, True]
    assert not threshold_gate(SITE, logits)[1, 0]
    assert all(torch.equal(part.rnn.weight, predictors[0].rnn.weight) for part in predictors)
    # Nothing is drawn: two passes keep the same.
    batch = crops.batch(np.random.default_rng(0), 1)
    kept = [losses(run.network.eval(), batch.frames, batch.truth, masked=True, noisy=False) for _ in range(2)]
    assert 0 < kept[0]["kept_in_training"] < 1
    assert kept[0]["kept_in_training"] == kept[1]["kept_in_training"]


def test_a_network_of_multi_frame_attention_is_trained_by_the_same_command(
    crops: Crops, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({f"spynet.{k}": v for k, v in tiny().spynet.state_dict().items()}, tmp_path / "flow.safetensors")
    clips = str(crops.clips.folders[0].parent)
    command = ["mia", clips, clips, str(tmp_path / "run"), "--multi-frame", "--embed-dim", "8", "--depths", "1"]
    command += ["--heads", "2", "--mid-channels", "8", "--frames", "2", "--crop", "16", "--steps", "1"]
    command += ["--flow", str(tmp_path / "flow.safetensors"), "--validation-crops", "1"]
    assert main(command) == 1
    assert capsys.readouterr().err == ("error: --mask-steps 100000 is not possible with --multi-frame; allowed: 0\n")
    assert main([*command, "--mask-steps", "0"]) == 0
    weights = load_file(tmp_path / "run/dense.safetensors")
    table = weights["patch_align.forward_2.layers.0.residual_group.blocks.0.attn.relative_position_bias_table"]
    assert table.shape == (5 * 15**2, 2)
    assert not any("predmask" in name for name in weights)
