from __future__ import annotations

import pytest
import torch
from torch import nn

import fxsplit
from recipes._budget import Cost, forward_cost, plan, sparse_epochs
from recipes._models import digits_resnet
from recipes.methods import full_ensemble, neurotrails, single_dense, treenet


def test_training_flops_by_the_formula_of_rigl() -> None:
    # (3 * 30 * 9 + 2 * 30 + 100) / 10
    assert neurotrails(1, 3, 0.8, every=9).training_flops(masked=30.0, dense=100.0) == pytest.approx(97.0)
    assert treenet(1, 3).training_flops(masked=100.0, dense=100.0) == 300.0


@pytest.mark.parametrize(
    ("epochs", "density", "per_epoch", "budget", "expected"),
    [
        (60, 0.2, 1.0, 1e9, 300),  # the rule of 1 / (1 - S) binds
        (60, 0.2, 1.0, 66.9, 66),  # the budget binds, rounded down
        (100, 0.1, 1.0, 1e9, 1000),  # 100 / 0.1 in floating point
        (1, 0.2, 5.0, 3.0, 1),  # never less than one epoch
    ],
)
def test_sparse_epochs(epochs: int, density: float, per_epoch: float, budget: float, expected: int) -> None:
    assert sparse_epochs(epochs, density, per_epoch, budget) == expected


def test_forward_cost_under_both_conventions() -> None:
    net = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 5))
    masks = {"0.weight": torch.arange(40).reshape(10, 4) < 10, "2.weight": torch.arange(50).reshape(5, 10) < 40}
    cost = forward_cost(fxsplit.trace(net, torch.zeros(2, 4)), masks)
    assert cost.dense == 2 * (40 + 50)
    assert cost.uniform == pytest.approx(180 * 50 / 90)
    assert cost.masked == pytest.approx(2 * (10 + 40))
    assert cost + cost == Cost(2 * cost.dense, 2 * cost.uniform, 2 * cost.masked)


class TestPlan:
    """The digits network by hand: width 8, one block in each of three stages; weights and FLOPs (2 x MAC)."""

    stem = 2 * 64 * (9 * 1 * 4 + 9 * 4 * 4 + 9 * 4 * 8)
    first = 2 * 64 * 2 * 9 * 8 * 8
    second = 2 * 16 * (9 * 8 * 16 + 9 * 16 * 16 + 8 * 16)
    third = 2 * 4 * (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32)
    classifier = 2 * 32 * 10
    trunk = stem + first
    head = second + third + classifier

    @staticmethod
    def make() -> nn.Module:
        return digits_resnet(width=8, blocks=1)

    def test_single_network(self) -> None:
        planned = plan(single_dense(), self.make, torch.zeros(2, 1, 8, 8), epochs=10, steps_per_epoch=3, batch_size=5)
        assert planned.cost.dense == planned.cost.masked == self.trunk + self.head
        assert planned.training_flops == planned.reference_flops == 10 * 15 * 3 * (self.trunk + self.head)
        assert (planned.networks, planned.heads, planned.epochs, planned.steps) == (1, 1, 10, 30)
        assert planned.kept == planned.parameters == sum(p.numel() for p in self.make().parameters())

    def test_full_ensemble_costs_three_networks(self) -> None:
        planned = plan(full_ensemble(3), self.make, torch.zeros(2, 1, 8, 8), 10, 3, 5)
        assert planned.ratio == pytest.approx(3)
        assert (planned.networks, planned.heads, planned.epochs) == (3, 3, 10)
        assert planned.cost.masked == 3 * (self.trunk + self.head)

    def test_treenet_costs_one_trunk_and_three_heads(self) -> None:
        planned = plan(treenet(1, 3), self.make, torch.zeros(2, 1, 8, 8), 10, 3, 5)
        assert planned.cost.dense == self.trunk + 3 * self.head
        assert planned.ratio == pytest.approx((self.trunk + 3 * self.head) / (self.trunk + self.head))
        assert (planned.networks, planned.heads, planned.epochs, planned.density) == (1, 3, 10, 1.0)

    def test_neurotrails_stays_within_the_budget(self) -> None:
        method = neurotrails(1, 3, 0.9, every=4)
        planned = plan(method, self.make, torch.zeros(2, 1, 8, 8), 10, 3, 5)
        assert planned.density == pytest.approx(0.1, abs=1e-3)
        assert planned.cost.dense == self.trunk + 3 * self.head
        assert planned.cost.uniform == pytest.approx(planned.density * planned.cost.dense)
        assert planned.ratio <= 1
        per_epoch = 15 * (3 * planned.cost.masked * 4 + 2 * planned.cost.masked + planned.cost.dense) / 5
        assert planned.training_flops == pytest.approx(planned.epochs * per_epoch)
        # One epoch more would break one of the two limits.
        assert planned.epochs + 1 > 10 / planned.density or (planned.epochs + 1) * per_epoch > planned.reference_flops
