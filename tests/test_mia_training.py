"""Training of MIA-VSR's masks."""

import torch
from torch import Tensor

from vsvsr.models.mia import MIAVSR, MaskSite
from vsvsr.training.mia import GumbelGate, keep_all, train_step

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


def _clip() -> tuple[Tensor, Tensor]:
    truth = torch.rand(1, 1, 3, 64, 64).repeat(1, 2, 1, 1, 1)
    return torch.nn.functional.avg_pool2d(truth.flatten(0, 1), 4).view(1, 2, 3, 16, 16), truth


def test_a_heavy_sparsity_loss_lowers_the_share_of_kept_positions() -> None:
    torch.manual_seed(0)
    network = MIAVSR(8, (1,), (2,), 8)
    network.spynet.requires_grad_(False)
    optimiser = torch.optim.Adam((p for p in network.parameters() if p.requires_grad), lr=0.03)
    frames, truth = _clip()
    kept = [train_step(network, optimiser, frames, truth, sparsity=10.0)[1] for _ in range(6)]
    assert abs(kept[0] - 0.5) < 0.05
    # Five steps of Adam move the bias by -0.15 at least: sigmoid(-0.15) = 0.463. The draw is good to 0.004.
    assert kept[-1] < 0.48


def test_the_first_phase_leaves_the_predictors_alone() -> None:
    torch.manual_seed(0)
    network = MIAVSR(8, (1,), (2,), 8)
    network.spynet.requires_grad_(False)
    before = {name: value.clone() for name, value in network.named_parameters()}
    optimiser = torch.optim.Adam((p for p in network.parameters() if p.requires_grad), lr=0.01)
    assert train_step(network, optimiser, *_clip(), sparsity=None)[1] == 1.0
    for name, value in network.named_parameters():
        changed = not torch.equal(value, before[name])
        assert changed == ("predmask" not in name and "spynet" not in name), name
    assert keep_all(SITE, torch.full((1, 2, 2), -9.0)).all()
