# Tests read weights of layers and fields that may be None, which pyright cannot know to be there.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
"""One-shot pruning, SNIP and gradual pruning, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsity
from sparsity import AllocationError, EngineError, MaskError


def two_layers() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -8.0], [3.0, 7.0], [-9.0, 2.0]]))
        net[1].weight.copy_(torch.tensor([[4.0, 0.5, -5.0], [0.1, 6.0, 0.2]]))
    return net


def kept(masks: sparsity.Masks) -> list[list[int]]:
    return [mask.flatten().int().tolist() for mask in masks.values()]


def test_over_all_layers_together() -> None:
    net = two_layers()
    masks = sparsity.prune(net, 0.5)
    assert kept(masks) == [[0, 1, 0, 1, 1, 0], [1, 0, 1, 0, 1, 0]]
    assert torch.equal(net[1].weight, torch.tensor([[4.0, 0.0, -5.0], [0.0, 6.0, 0.0]]))


def test_within_layers() -> None:
    masks = sparsity.prune(two_layers(), 0.5, allocation={"0": 1 / 3})
    assert kept(masks) == [[0, 1, 0, 0, 1, 0], [1, 1, 1, 0, 1, 0]]


def test_what_is_pruned_can_be_pruned_further_but_not_less() -> None:
    net = two_layers()
    sparsity.prune(net, 0.25)
    assert kept(sparsity.prune(net, 0.5)) == [[0, 1, 0, 1, 1, 0], [1, 0, 1, 0, 1, 0]]
    before = kept(sparsity.masks_of(net))
    with pytest.raises(AllocationError, match=r"has 6 active of 12 weights.*sparsity of 0.4 would need 7"):
        sparsity.prune(net, 0.4)
    with pytest.raises(AllocationError, match=r"keeps more weights than are active in '1.weight'"):
        sparsity.prune(net, 0.5, allocation={"1": 5 / 6})
    with pytest.raises(MaskError, match="are for a model without masks"):
        sparsity.prune(net, 0.8, skip=["0"])
    assert kept(sparsity.masks_of(net)) == before


def test_skip() -> None:
    masks = sparsity.prune(two_layers(), 0.5, skip=["0"])
    assert list(masks) == ["1.weight"]
    assert kept(masks) == [[1, 0, 1, 0, 1, 0]]


def test_include() -> None:
    net = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.arange(12.0).view(4, 3))
        net[1].weight.fill_(5.5)
    masks = sparsity.prune(net, 1 / 3, include=nn.Embedding)
    assert kept(masks) == [[0] * 6 + [1] * 6, [1] * 6]
    with pytest.raises(MaskError, match="are for a model without masks"):
        sparsity.prune(net, 0.8, include=nn.Embedding)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_failure_leaves_the_model_as_it_was(wrong: float) -> None:
    net = two_layers()
    before, kinds = {k: v.clone() for k, v in net.state_dict().items()}, [type(each) for each in net]
    with pytest.raises(ZeroDivisionError):
        sparsity.prune(net, 0.5, score=lambda layer: layer.weight * (1 // 0))
    with torch.no_grad():
        net[1].weight[0, 0] = before["1.weight"][0, 0] = wrong
    with pytest.raises(MaskError, match="is not finite"):
        sparsity.prune(net, 0.5)
    with pytest.raises(AllocationError):
        sparsity.prune(net, 1.5)
    assert [type(each) for each in net] == kinds
    assert list(before) == list(net.state_dict())
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, before[key], equal_nan=True, rtol=0, atol=0)


def test_not_under_an_engine_or_without_values() -> None:
    net = two_layers()
    sparsity.sparsify(net, 0.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = sparsity.static(net, optimizer)
    with pytest.raises(EngineError, match="Another engine keeps these masks"):
        sparsity.prune(net, 0.5)
    assert engine.masks.nonzeros == 12
    with torch.device("meta"):
        net = nn.Linear(4, 4)
    with pytest.raises(MaskError, match="on the meta device"):
        sparsity.prune(net, 0.5)
    assert not sparsity.masks_of(net)


def test_pruned_half_way_then_trained_with_fixed_masks() -> None:
    """The paper's pruning baseline, with momentum from dense training."""
    net = two_layers()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for step in range(6):
        if step == 3:
            masks = sparsity.prune(net, 0.5)
            before = kept(masks)
            sparsity.static(net, optimizer)
        net(torch.ones(2)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    masks = sparsity.masks_of(net)
    assert kept(masks) == before
    for path, weight in masks.weights.items():
        assert not weight.parameter[~masks[path]].any()
        assert not optimizer.state[weight.parameter]["momentum_buffer"][~masks[path]].any()


def test_snip_by_hand() -> None:
    net = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]]))
    calls = []

    def loss() -> Tensor:
        calls.append(1)
        return (net(torch.tensor([6.0, 4.0, 1.0])) * torch.tensor([1.0, 0.5])).sum()

    masks = sparsity.snip(net, 0.5, loss)
    # |w g| = 6 8 3 / 12 10 3
    assert kept(masks) == [[0, 1, 0, 1, 1, 0]]
    assert calls == [1]
    assert net.parametrizations.weight.original.grad is None


def test_snip_needs_every_weight() -> None:
    net = two_layers()
    with pytest.raises(MaskError, match=r"does not depend on '1.weight'"):
        sparsity.snip(net, 0.5, lambda: net[0](torch.ones(2)).sum())
    assert not sparsity.masks_of(net)
    assert sparsity.snip(net, 0.5, lambda: net[0](torch.ones(2)).sum(), skip=["1"]).nonzeros == 3


def test_snip_needs_a_gradient() -> None:
    net = two_layers()
    with pytest.raises(MaskError, match="The loss has no gradient"):
        sparsity.snip(net, 0.5, lambda: torch.zeros(()))
    assert not sparsity.masks_of(net)


def trained(net: nn.Module, **options: Any) -> tuple[sparsity.Engine, list[tuple[int, int]]]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    seen: list[tuple[int, int]] = []
    masks = sparsity.masks_of(net)
    engine = sparsity.gradual(
        net, optimizer, callback=lambda update: seen.append((update.step, masks.nonzeros)), **options
    )
    for _ in range(16):
        optimizer.zero_grad()
        net(torch.ones(next(net.parameters()).shape[1])).sum().backward()
        optimizer.step()
    return engine, seen


def test_gradual_by_hand() -> None:
    net = nn.Linear(10, 10, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.arange(1, 101).view(10, 10))
    sparsity.sparsify(net, 0.0)
    engine, seen = trained(net, sparsity=0.8, begin=2, until=14, every=3)
    # 20 + 80 (3/4)^3 = 53.75, 20 + 80 / 8 = 30, 20 + 80 / 64 = 21.25
    assert seen == [(2, 100), (5, 54), (8, 30), (11, 21), (14, 20)]
    assert engine.last.grown == {"weight": 0}
    assert torch.equal(sparsity.masks_of(net)["weight"].flatten(), torch.arange(1, 101) > 80)


def test_gradual_over_all_layers_and_within() -> None:
    net = two_layers()
    sparsity.sparsify(net, 0.0)
    trained(net, sparsity=0.5, begin=0, until=12, every=4)
    assert kept(sparsity.masks_of(net)) == [[0, 1, 0, 1, 1, 0], [1, 0, 1, 0, 1, 0]]
    net = two_layers()
    sparsity.sparsify(net, 0.0)
    trained(net, sparsity=0.5, begin=0, until=12, every=4, allocation={"0": 1 / 3})
    assert kept(sparsity.masks_of(net)) == [[0, 1, 0, 0, 1, 0], [1, 1, 1, 0, 1, 0]]


def test_gradual_that_cannot_be() -> None:
    net = two_layers()
    sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for begin, until in ((0, 10), (9, 9), (9, 6)):
        with pytest.raises(EngineError, match=r"a positive multiple of every=3|so there would be none"):
            sparsity.gradual(net, optimizer, 0.8, begin=begin, until=until, every=3)
    with pytest.raises(EngineError, match="every is a number of optimizer steps of at least 1"):
        sparsity.gradual(net, optimizer, 0.8, begin=0, until=9, every=0)
    with pytest.raises(AllocationError, match="Pruning only takes weights away"):
        sparsity.gradual(net, optimizer, 0.2, begin=0, until=9, every=3)
    with pytest.raises(EngineError, match="has no masks"):
        sparsity.gradual(nn.Linear(2, 2), optimizer, 0.8, begin=0, until=9, every=3)


def test_dtypes_are_compared_exactly() -> None:
    """1.005 is the smallest; rounded to bfloat16 it would be as large as 1.0078125."""
    net = nn.ModuleList([nn.Linear(2, 1, bias=False).bfloat16(), nn.Linear(2, 1, bias=False)])
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0078125, 3.0]]))
        net[1].weight.copy_(torch.tensor([[1.005, 3.0]]))
    masks = sparsity.prune(net, 0.25)
    assert masks["0.weight"].tolist() == [[True, True]]
    assert masks["1.weight"].tolist() == [[False, True]]


@pytest.mark.parametrize("allocation", [None, "uniform"])
def test_a_score_that_is_nan(allocation: str | None) -> None:
    net = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 4))
    with pytest.raises(sparsity.MaskError, match=r"would drop \d+ weights instead of 320, so nothing was changed"):
        sparsity.prune(net, 0.5, score=lambda layer: layer.weight * torch.nan, allocation=allocation)
    assert not sparsity.masks_of(net)


@pytest.mark.parametrize("allocation", [None, "erk"])
def test_gradual_resumes_on_its_curve(allocation: str | None) -> None:
    """Whether the model is loaded before or after the engine is made."""

    def start(state: Any = None) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
        sparsity.sparsify(net, 0.0)
        if state is not None:
            net.load_state_dict(state)
        return net, torch.optim.SGD(net.parameters(), lr=0.01)

    def attach(net: nn.Module, optimizer: torch.optim.Optimizer) -> sparsity.Engine:
        return sparsity.gradual(net, optimizer, 0.8, 0, 20, every=2, allocation=allocation)

    def counts(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[int]:
        seen = []
        for step in steps:
            optimizer.zero_grad()
            net(torch.randn(4, 32, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimizer.step()
            seen.append(sparsity.masks_of(net).nonzeros)
        return seen

    net, optimizer = start()
    engine = attach(net, optimizer)
    counts(net, optimizer, range(9))
    saved, states = {name: value.clone() for name, value in net.state_dict().items()}, engine.state_dict()
    expected = counts(net, optimizer, range(9, 22))
    for early in (True, False):
        net, optimizer = start(saved if early else None)
        engine = attach(net, optimizer)
        net.load_state_dict(saved)
        engine.load_state_dict(states)
        assert counts(net, optimizer, range(9, 22)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begin": 100, "until": 10}, r"from begin=100 to until=10 have to be"),
        ({"begin": 0.0, "until": 100}, r"begin is a number of optimizer steps of at least 0, got 0.0"),
        ({"begin": 0, "until": None}, r"until is a number of optimizer steps of at least 1, got None"),
        ({"begin": 0, "until": 100, "every": 0}, r"every is a number of optimizer steps of at least 1, got 0"),
    ],
)
def test_gradual_in_steps_that_are_none(options: Any, message: str) -> None:
    net = two_layers()
    sparsity.sparsify(net, 0.0)
    with pytest.raises(EngineError, match=message):
        sparsity.gradual(net, torch.optim.SGD(net.parameters(), lr=0.1), 0.5, **options)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (torch.ones(()), "loss is a function, got one of type Tensor"),
        (lambda: None, "a tensor with one number, got None"),
        (lambda: torch.ones(3), r"a tensor with one number, got one of shape \(3,\)"),
    ],
)
def test_snip_needs_a_loss(loss: Any, message: str) -> None:
    net = two_layers()
    with pytest.raises(MaskError, match=message):
        sparsity.snip(net, 0.5, loss)
    assert not sparsity.masks_of(net)


def test_snip_of_frozen_weights() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    net[0].requires_grad_(False)
    with pytest.raises(MaskError, match=r"Frozen weights have no gradient: '0.weight'. Name them in skip"):
        sparsity.snip(net, 0.5, lambda: net(torch.ones(1, 8)).sum())
    with pytest.raises(MaskError, match="score is a function, got 'magnitude'"):
        sparsity.prune(net, 0.5, "magnitude")  # pyright: ignore
