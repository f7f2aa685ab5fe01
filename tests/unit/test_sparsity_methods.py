# Tests read weights of layers and fields that may be None, which pyright cannot know to be there.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOptionalOperand=false

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import sparsity
from sparsity import EngineError, Rule
from sparsity._drop import magnitude
from sparsity._grow import gradient
from sparsity._rewire import Amount
from sparsity._schedule import constant, cosine, schedule
from sparsity._smallest import smallest
from tests.unit._by_hand import MASK, layer_by_hand


def two_steps(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A step without gradient, then one whose unmasked gradient is [[1, 5, 3], [-2, -10, -6]]."""
    for x in ([0.0, 0.0, 0.0], [1.0, 5.0, 3.0]):
        optimizer.zero_grad()
        (net(torch.tensor(x)) * torch.tensor([1.0, -2.0])).sum().backward()
        optimizer.step()


def test_rigl_by_hand():
    net, masks = layer_by_hand()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = sparsity.rigl(net, optimizer, every=1, fraction=0.25)
    two_steps(net, optimizer)
    # -1 is the smallest weight. Of the inactive, (0, 2) has gradient 3 and (1, 0) has -2; the dropped one had 5.
    assert engine.last.dropped == engine.last.grown == {"weight": 1}
    assert torch.equal(masks["weight"], torch.tensor([[True, False, True], [False, True, True]]))
    weight = masks.weights["weight"].parameter
    assert torch.equal(weight.grad, torch.tensor([[1.0, 0.0, 0.0], [0.0, -10.0, -6.0]]))
    torch.testing.assert_close(weight.detach(), torch.tensor([[2.9, 0.0, 0.0], [0.0, 3.0, -3.4]]))


@pytest.mark.parametrize("method", [sparsity.rigl, sparsity.set_])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_no_more_is_dropped_than_can_be_grown(method, fraction):
    net, masks = layer_by_hand()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = method(net, optimizer, every=1, fraction=fraction)
    two_steps(net, optimizer)
    assert engine.last.grown == {"weight": 2}
    assert torch.equal(masks["weight"], torch.tensor([[True, False, True], [True, False, True]]))


def test_set_by_hand():
    counts = torch.zeros(2, 3)
    for seed in range(200):
        net, masks = layer_by_hand()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        sparsity.set_(net, optimizer, every=1, fraction=0.25, seed=seed)
        two_steps(net, optimizer)
        counts += masks["weight"]
    # -1 is dropped, and one of the two inactive is grown: each in about half of 200 runs (five standard deviations).
    assert torch.equal(counts[0, :2], torch.tensor([200.0, 0.0]))
    assert torch.equal(counts[1, 1:], torch.tensor([200.0, 200.0]))
    assert counts[0, 2] + counts[1, 0] == 200
    assert abs(counts[0, 2] - 100) < 5 * math.sqrt(200) / 2


def test_set_depends_on_its_seed_only():
    def masks_after(seed):
        net = nn.Linear(20, 20)
        masks = sparsity.sparsify(net, 0.5)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        sparsity.set_(net, optimizer, every=1, fraction=0.5, seed=seed)
        with torch.no_grad():
            net.weight = torch.arange(1, 401).view(20, 20).float()
        for _ in range(2):
            net(torch.ones(20)).sum().backward()
            state = torch.get_rng_state()
            optimizer.step()
            assert torch.equal(torch.get_rng_state(), state)
        return masks["weight"]

    assert torch.equal(masks_after(1), masks_after(1))
    assert not torch.equal(masks_after(1), masks_after(2))


def test_set_draws_anew_for_each_layer_and_step():
    def grown(step):
        net = nn.Sequential(nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False))
        masks = sparsity.sparsify(net, 0.5)
        for path, weight in masks.weights.items():
            masks[path].copy_(torch.arange(144).view(12, 12) % 2 == 0)
            weight.parameter.data.copy_(masks[path])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        engine = sparsity.set_(net, optimizer, every=1, fraction=0.5)
        engine.load_state_dict({**engine.state_dict(), "step": step})
        net(torch.ones(12)).sum().backward()
        optimizer.step()
        return [mask.flatten()[1::2] for mask in masks.values()]

    draws = grown(1) + grown(2)
    assert all(draw.sum() == 36 for draw in draws)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(draws, 2))


def test_static_by_hand():
    net, masks = layer_by_hand()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparsity.static(net, optimizer)
    two_steps(net, optimizer)
    assert torch.equal(masks["weight"], MASK)
    expected = torch.tensor([[2.9, -1.5, 0.0], [0.0, 3.0, -3.4]])
    torch.testing.assert_close(masks.weights["weight"].parameter.detach(), expected)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
def test_smallest_takes_the_first_of_equals(count):
    score = torch.tensor([[2.0, 1.0, 9.0], [1.0, 1.0, 2.0]])
    among = torch.tensor([[True, True, False], [True, True, True]])
    order = [(0, 1), (1, 0), (1, 1), (0, 0), (1, 2)]
    expected = torch.zeros(2, 3, dtype=torch.bool)
    for place in order[:count]:
        expected[place] = True
    assert torch.equal(smallest(score, count, among), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_smallest_equals_a_stable_sort(dtype):
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        score = torch.randint(0, 6, (7, 5), generator=generator).to(dtype)
        among = torch.rand(7, 5, generator=generator) < 0.7
        count = int(torch.randint(0, int(among.sum()) + 1, (), generator=generator))
        flat = score.flatten().tolist()
        order = sorted((i for i in range(35) if among.flatten()[i]), key=lambda i: flat[i])
        chosen = smallest(score, count, among).flatten().nonzero().flatten().tolist()
        assert chosen == sorted(order[:count])


def test_smallest_does_not_depend_on_the_memory_layout():
    score = torch.randint(0, 3, (2, 3, 4, 4)).float()
    among = torch.rand(2, 3, 4, 4) < 0.8
    last = smallest(score.to(memory_format=torch.channels_last), 20, among.to(memory_format=torch.channels_last))
    assert torch.equal(smallest(score, 20, among), last)


def test_cosine_schedule():
    fraction = cosine(0.4, until=200)
    assert [fraction(step) for step in (0, 100, 200, 300)] == [0.4, pytest.approx(0.2), 0.0, 0.0]
    assert fraction(50) == pytest.approx(0.2 * (1 + math.sqrt(0.5)))
    assert constant(0.3)(10**9) == 0.3
    assert schedule(0.4, 200)(100) == pytest.approx(0.2)
    assert schedule(0.4, None)(100) == 0.4
    assert schedule(fraction, 10) is fraction


def rule(every=100, until=None, fraction=0.29):
    return Rule(every, until, constant(fraction), magnitude, gradient)


def test_due():
    assert [step for step in range(501) if rule(100, 400).due(step)] == [100, 200, 300]
    assert [step for step in range(5) if rule(1).due(step)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("fraction", "nonzeros", "total", "expected"),
    [(0.29, 100, 1000, 29), (0.3, 9, 1000, 2), (0.5, 1, 10, 0), (1.0, 30, 40, 10), (0.3, 40, 40, 0), (0.0, 5, 10, 0)],
)
def test_count(fraction, nonzeros, total, expected):
    assert rule(fraction=fraction).amount(100, "weight", nonzeros, total) == Amount(expected)


@pytest.mark.parametrize("method", [sparsity.rigl, sparsity.set_])
def test_methods_decay_their_fraction_to_zero(method):
    net, _ = layer_by_hand()
    fractions = []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    method(net, optimizer, every=2, until=8, fraction=0.4, callback=lambda done: fractions.append(done.fraction))
    for _ in range(12):
        net(torch.ones(3)).sum().backward()
        optimizer.step()
    assert fractions == pytest.approx([0.2 * (1 + math.sqrt(0.5)), 0.2, 0.2 * (1 - math.sqrt(0.5))])


def test_fraction_outside_of_the_schedule_range():
    with pytest.raises(EngineError, match=r"gave nan at step 3"):
        rule(fraction=math.nan).share(3)


def test_training_flops_of_rigl():
    # f_D = 10, f_S = 2, dT = 99: of 100 steps 99 cost 3 * 2 and one costs 2 * 2 + 10.
    assert sparsity.dense_training_flops(10) == 30
    assert sparsity.sparse_training_flops(2) == 6
    assert sparsity.rigl_training_flops(2, 10, every=99) == pytest.approx((99 * 6 + 14) / 100)
    assert sparsity.rigl_training_flops(10, 10, every=7) == sparsity.dense_training_flops(10)
