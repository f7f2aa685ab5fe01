"""torch.vmap inside a model: one operation, whose captured tensors and sizes are arguments of the graph."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxsplit
from fxsplit import TraceError
from fxsplit._trace._closures import captured, with_captured
from tests.checks import assert_same


class Masked(nn.Module):
    """Builds its attention mask from a function of two positions that closes over a mask and the length."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        length = x.shape[1]

        def allowed(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (hidden.select(0, 0)[0] < length) & ((row + key) % length >= 0)

        function = torch.vmap(torch.vmap(torch.vmap(allowed, (None, None, 0)), (None, 0, None)), (0, None, None))
        mask = function(torch.arange(x.shape[0]), torch.arange(length), torch.arange(length))
        return torch.softmax(self.linear(x) @ x.mT + mask, -1) @ x * hidden.sum()


def test_the_batch_and_captured_tensors_stay_free() -> None:
    net = Masked()
    traced = fxsplit.trace(net, (torch.randn(2, 5, 4), torch.zeros(2, 5, dtype=torch.long)))
    assert traced.report.coarse_leaves == []
    for batch in (1, 2, 5):
        x, hidden = torch.randn(batch, 5, 4), torch.randint(9, (batch, 5))
        assert_same(traced(x, hidden), net(x, hidden))
        assert_same(copy.deepcopy(traced)(x, hidden), net(x, hidden))


class PerSample(nn.Module):
    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.inner = Gradient(transform)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.inner(x))


class Gradient(nn.Module):
    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor) -> Tensor:
        return self.transform(lambda row: (row**3).sum())(x)


def test_other_transforms_are_kept_whole_in_their_module() -> None:
    net = PerSample(torch.func.grad)
    traced = fxsplit.trace(net, torch.randn(2, 4))
    assert [node.target for node in traced.graph.nodes] == ["x", "inner", "linear", "output"]
    x = torch.randn(3, 4)
    assert_same(traced(x), net(x))


def test_other_transforms_in_the_model_itself_are_refused() -> None:
    net = Gradient(torch.func.grad)
    net.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(TraceError, match=r"transform of torch\.func"):
        fxsplit.trace(net, torch.randn(2, 4))


def test_captured_values_can_be_replaced() -> None:
    def outer(a: int, b: list[int], c: Any) -> Any:
        def inner(x: int) -> int:
            return x * a + sum(b) + c(x)

        return inner

    function = outer(2, [3, 4], partial(outer(5, [], abs), 1))
    assert captured(function) == [2, 3, 4, 1, 5]
    assert with_captured(outer(2, [3], abs), [10, 20])(1) == 31
    assert function.__name__ == with_captured(function, [2, 3, 4, 1, 5]).__name__


def test_a_function_may_close_over_itself() -> None:
    step = 2

    def down(x: int) -> int:
        return x if x < step else down(x - step)

    assert with_captured(down, [3])(7) == 1
