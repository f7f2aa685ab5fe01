"""The unmasked gradients count what ``.grad`` counts, however a loop resets it."""

# Tests read weights of layers, which pyright cannot know to be there.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

import sparsity
from sparsity._gradient import DenseGradient, _open


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))


def inputs(seed: int) -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))


RESETS: dict[str, Callable[[torch.optim.Optimizer, nn.Module], Any]] = {
    "to none": lambda optimizer, net: optimizer.zero_grad(set_to_none=True),
    "to zero": lambda optimizer, net: optimizer.zero_grad(set_to_none=False),
    "of the model": lambda optimizer, net: net.zero_grad(set_to_none=False),
    "by hand": lambda optimizer, net: [each.grad.zero_() for each in net.parameters() if each.grad is not None],
    "by other tensors": lambda optimizer, net: [
        setattr(each, "grad", torch.zeros_like(each)) for each in net.parameters()
    ],
}


def run(reset: Callable[..., Any], discard: bool, wrap: Callable[[nn.Module], Any] = lambda net: net) -> list[Tensor]:
    net = network()
    masks = sparsity.sparsify(net, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    engine = sparsity.rigl(net, optimizer, every=1)
    forward = wrap(net)
    for step in range(5):
        if discard and step % 2:
            (1e6 * forward(inputs(99))).square().sum().backward()
        reset(optimizer, net)
        for micro in range(2):
            forward(inputs(2 * step + micro)).square().sum().backward()
        if step == 2:
            copy.deepcopy(net)
        optimizer.step()
    assert engine.last is not None
    assert engine.last.step == 4
    return [*masks.values(), *(each.detach() for each in net.parameters())]


WRAPS: dict[str, Callable[[nn.Module], Any]] = {
    "plain": lambda net: net,
    "checkpoint": lambda net: lambda x: checkpoint(net, x, use_reentrant=False),
    "reentrant checkpoint": lambda net: lambda x: checkpoint(net, x.requires_grad_(), use_reentrant=True),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("reset", RESETS.values(), ids=RESETS)
def test_discarded_gradients_do_not_count(reset: Callable[..., Any], wrap: Callable[[nn.Module], Any]) -> None:
    clean = run(RESETS["to none"], discard=False)
    for found in (run(reset, discard=True, wrap=wrap), run(reset, discard=False, wrap=wrap)):
        assert all(torch.equal(a, b) for a, b in zip(clean, found, strict=True))


@pytest.mark.parametrize("reset", ["to none", "to zero"])
def test_compiled_once(reset: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    clean = run(RESETS["to none"], discard=False)
    found = run(RESETS[reset], True, lambda net: torch.compile(net, backend=counter, fullgraph=True))
    assert counter.frame_count == 1
    assert all(torch.equal(a, b) for a, b in zip(clean, found, strict=True))


@pytest.mark.parametrize("reset", RESETS.values(), ids=RESETS)
def test_a_layer_without_active_weights_accumulates(reset: Callable[..., Any]) -> None:
    """Its ``.grad`` is all zero after every backward pass, which must not look like a reset."""
    net = nn.Linear(3, 1, bias=False)
    masks = sparsity.sparsify(net, 0.5)
    masks["weight"].zero_()
    masks.apply()
    parameter = masks.weights["weight"].parameter
    collector = DenseGradient(masks["weight"], parameter)
    optimizer = torch.optim.SGD(net.parameters())
    for _ in range(2):
        reset(optimizer, net)
        for factor in (1.0, 2.0, 4.0):
            net(factor * torch.tensor([[1.0, 10.0, 100.0]])).sum().backward()
        assert torch.equal(collector.total, torch.tensor([[7.0, 70.0, 700.0]]))
        assert not parameter.grad.any()


@pytest.mark.parametrize("touch", ["clip", "unscale"])
def test_gradients_written_to_between_micro_batches_still_count(touch: str) -> None:
    net = nn.Linear(2, 1, bias=False)
    masks = sparsity.sparsify(net, 0.5)
    masks["weight"].copy_(torch.tensor([[True, False]]))
    collector = DenseGradient(masks["weight"], masks.weights["weight"].parameter)
    x = torch.tensor([[1.0, 3.0]])
    net(x).sum().backward()
    if touch == "clip":
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    else:
        masks.weights["weight"].parameter.grad.div_(1024)
    net(x).sum().backward()
    assert torch.equal(collector.total, torch.tensor([[2.0, 6.0]]))


def test_infinite_gradients_are_forgotten_with_their_step() -> None:
    net = nn.Linear(2, 1, bias=False)
    masks = sparsity.sparsify(net, 0.5)
    collector = DenseGradient(masks["weight"], masks.weights["weight"].parameter)
    (net(torch.ones(1, 2)).sum() * torch.inf).backward()
    net.zero_grad(set_to_none=False)
    net(torch.ones(1, 2)).sum().backward()
    assert torch.equal(collector.total, torch.ones(1, 2))


def test_nothing_stays_on_the_weight() -> None:
    net = network()
    masks = sparsity.sparsify(net, 0.5)
    parameter = masks.weights["0.weight"].parameter
    gc.collect()  # what is left of engines of other tests
    others = len(_open)
    gc.disable()  # references alone have to do
    try:
        for close in (True, False):
            collector = DenseGradient(masks["0.weight"], parameter)
            net(inputs(0)).sum().backward()
            assert len(parameter._post_accumulate_grad_hooks) == 1
            assert len(_open) == others + 1
            if close:
                collector.close()
            gone = weakref.ref(collector)
            del collector
            assert gone() is None
            assert not parameter._post_accumulate_grad_hooks
            assert len(_open) == others
    finally:
        gc.enable()


def test_a_frozen_weight_can_be_collected() -> None:
    net = network().requires_grad_(False)
    masks = sparsity.sparsify(net, 0.5)
    collector = DenseGradient(masks["0.weight"], masks.weights["0.weight"].parameter)
    net.requires_grad_(True)  # thawed while it is open
    for _ in range(2):
        net(inputs(0)).sum().backward()
    first = collector.total.clone()
    net.zero_grad(set_to_none=False)
    net(inputs(0)).sum().backward()
    torch.testing.assert_close(2 * collector.total, first)


def test_the_memory_of_an_open_mask_is_not_given_to_another_one() -> None:
    """Collectors are found by it."""
    net = network()
    masks = sparsity.sparsify(net, 0.5)
    collector = DenseGradient(masks["0.weight"], masks.weights["0.weight"].parameter)
    mask = weakref.ref(masks["0.weight"])
    sparsity.fold(net)
    del masks
    gc.collect()
    assert mask() is not None
    collector.close()
