"""Heads that write to what they are given must not disturb each other, nor what the trunk returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxsplit

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


class Tail(nn.Module):
    """A trunk of one layer, then ``tail`` on its output, then a layer."""

    def __init__(self, tail: Callable[[Tensor], Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 6)
        self.tail = tail
        self.extra = nn.ModuleList(modules)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tail(self.trunk(x))
        for module in self.extra:
            x = module(x)
        return self.head(x)


def same(x: Tensor) -> Tensor:
    return x


def assert_heads_are_the_model(net: fxsplit.SplitModel, model: nn.Module, *inputs: Tensor) -> None:
    """Outputs of every head, of the vote, and the gradients of head and trunk."""
    before = [value.clone() for value in inputs]
    expected = pytree.tree_leaves(model(*(value.clone() for value in inputs)))
    for output in net.head_outputs(*inputs):
        assert all(torch.equal(a, b) for a, b in zip(pytree.tree_leaves(output), expected, strict=True))
    voted = pytree.tree_leaves(net(*inputs))
    for actual, wanted in zip(voted, expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    torch.stack([leaf.sum() for leaf in voted]).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def split(model: nn.Module, at: Any, *inputs: Tensor) -> Any:
    return fxsplit.split(fxsplit.trace(model.eval(), tuple(v.clone() for v in inputs)), at, heads=3, init="copy")


def add_ten(x: Tensor) -> Tensor:
    return x.add_(10)


def write_row(x: Tensor) -> Tensor:
    x = x.clone() if x.requires_grad and x.is_leaf else x
    x[:, 0] = 7.0
    return x


@pytest.mark.parametrize(
    "model",
    [
        Tail(same, nn.ReLU(inplace=True)),
        Tail(same, nn.Identity(), nn.ReLU(inplace=True)),
        Tail(same, nn.Dropout(0.5), nn.ReLU(inplace=True)),
        Tail(same, nn.Flatten(), nn.Hardswish(inplace=True)),
        Tail(lambda x: F.relu(x, inplace=True)),
        Tail(lambda x: F.relu(x, True)),
        Tail(lambda x: F.dropout(x, 0.5, False).relu_()),
        Tail(add_ten),
        Tail(lambda x: add_ten(x.view(-1, 6))),
        Tail(lambda x: add_ten(x.transpose(0, 1)).transpose(0, 1)),
        Tail(lambda x: torch.cat([x[:, :3].mul_(3), x[:, 3:]], 1)),
        Tail(lambda x: x + add_ten(x[:, :1])),
        Tail(lambda x: torch.add(x, 1, out=x) if not torch.is_grad_enabled() else add_ten(x)),
        Tail(write_row),
        Tail(lambda x: x.float().masked_fill_(x > 0, 2.0)),
    ],
)
def test_a_head_that_writes_to_the_main_tensor_copies_it_first(model: nn.Module) -> None:
    net = split(model, "trunk", X)
    assert net.report.cloned == ("trunk",)
    assert_heads_are_the_model(net, model, X)
    for head in net.heads:
        assert [n.target for n in head.graph.nodes].count("clone") >= 1


@pytest.mark.parametrize(
    "model",
    [
        Tail(same),
        Tail(same, nn.ReLU()),
        Tail(same, nn.Linear(6, 6), nn.ReLU(inplace=True)),
        Tail(lambda x: (x + 1).relu_()),
        Tail(lambda x: x.mul(2).add_(x)),
        Tail(lambda x: add_ten(x.view(-1, 6).clone())),
    ],
)
def test_nothing_is_copied_without_need(model: nn.Module) -> None:
    net = split(model, "trunk", X)
    assert net.report.cloned == ()
    assert not [n for n in net.heads[0].graph.nodes if n.target == "clone" and n.meta["path"] == "trunk"]
    assert_heads_are_the_model(net, model, X)


def test_without_the_copy_the_error_would_be_visible() -> None:
    model = Tail(add_ten)
    net = split(model, "trunk", X)
    for head in net.heads:
        (clone,) = (n for n in head.graph.nodes if n.target == "clone")
        clone.replace_all_uses_with(clone.args[0])
        head.graph.erase_node(clone)
        head.recompile()
    one, two, three = net.head_outputs(X)
    assert torch.equal(one, model(X))
    assert (two - one).abs().max() > 0.1
    assert (three - two).abs().max() > 0.1


def test_a_side_input_is_copied_on_its_own() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            bias = 1 - mask
            x = self.one(x + bias)
            return self.two(x + bias.mul_(-2))

    mask = torch.ones(5, 4)
    model = Masked()
    net = split(model, "one", X, mask)
    assert net.report.cloned == ("rsub",)
    assert_heads_are_the_model(net, model, X, mask)


def test_an_input_that_heads_write_to_is_copied() -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return self.two(self.one(x) + shift.mul_(2))

    shift = torch.ones(5, 4)
    model = Labelled()
    net = split(model, "one", X, shift)
    assert net.report.cloned == ("shift",)
    assert_heads_are_the_model(net, model, X, shift)


class Returned(nn.Module):
    """Returns what the trunk computed beside what a head makes of it."""

    def __init__(self, tail: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.tail = tail

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, x = self.tail(self.trunk(x))
        return features, self.head(x)


@pytest.mark.parametrize(
    "tail",
    [
        lambda x: (x, add_ten(x)),
        lambda x: (x, add_ten(x.view(-1, 6))),
        lambda x: (x.view(-1, 6), add_ten(x)),
        lambda x: (x.view(-1, 2), add_ten(x.view(-1, 6))),
    ],
)
def test_an_output_of_the_trunk_that_a_head_writes_to_shows_the_write(tail: Any) -> None:
    """As in the model itself, where both are the same memory."""
    model = Returned(tail)
    net = split(model, "trunk", X)
    assert_heads_are_the_model(net, model, X)
    assert net.report.passed == ()


class ViewsInTrunk(nn.Module):
    def __init__(self, first: str) -> None:
        super().__init__()
        self.trunk, self.flat, self.head = nn.Linear(4, 6), nn.Identity(), nn.Linear(6, 2)
        self.first = first

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        base = self.trunk(x)
        view = self.flat(base.view(-1, 6))
        written = add_ten(view)
        return base if self.first == "base" else base.view(-1, 3), self.head(written)


@pytest.mark.parametrize("first", ["base", "view"])
def test_a_view_made_in_the_trunk_follows_a_head_that_writes_through_it(first: str) -> None:
    model = ViewsInTrunk(first)
    net = split(model, "trunk", X)
    assert_heads_are_the_model(net, model, X)


def test_a_write_in_the_trunk_is_seen_by_the_heads() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            x.add_(3)
            return self.three(self.two(x) + 1)

    model = Early()
    net = split(model, "two", X)
    assert_heads_are_the_model(net, model, X)
    assert len(net.cut.crossing) == 1


def test_a_buffer_that_the_trunk_updates_is_handed_to_the_heads() -> None:
    class Levelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2)
            self.level: Tensor
            self.register_buffer("level", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.level.copy_(x.detach().mean())
            return self.two(self.one(x)) + self.level

    model = Levelled()
    net = split(model, "one", X)
    for x in (X, X + 1):
        expected = model(x)
        assert all(torch.equal(output, expected) for output in net.head_outputs(x))
    assert [name for name, _ in net.named_buffers()] == ["trunk.level"]


def test_leaf_modules_of_the_user_may_write_through_parts_of_theirs() -> None:
    class Act(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x)

    model = Tail(same, Act())
    traced = fxsplit.trace(model.eval(), X, leaf=["extra.0"])
    net = fxsplit.split(traced, "trunk", heads=3, init="copy")
    assert net.report.cloned == ("trunk",)
    assert_heads_are_the_model(net, model, X)
