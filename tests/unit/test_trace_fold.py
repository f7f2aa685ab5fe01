"""Containers that are taken apart and put together again follow the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxsplit
from tests.checks import assert_same

CASES: dict[str, Callable[[Tensor], Any]] = {
    "cat of rows": lambda x: torch.cat(list(x)),
    "stack of rows": lambda x: torch.stack([*x]),
    "stack by keyword": lambda x: torch.stack(tensors=x.split(1), dim=1),
    "list of rows": lambda x: list(x),
    "tuple in a dict": lambda x: {"rows": tuple(x.unbind(0)), "sum": x.sum(0)},
    "halves, back together": lambda x: torch.cat(x.chunk(2, dim=1), dim=1),
    "halves, swapped": lambda x: torch.cat(x.chunk(2, dim=1)[::-1], dim=1),
    "halves, also one alone": lambda x: torch.cat(x.chunk(2, dim=1), dim=1) + x.chunk(2, dim=1)[0].sum(),
}


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.linear(x))


@pytest.mark.parametrize("case", CASES)
def test_every_batch(case: str) -> None:
    net = Net(CASES[case])
    traced = fxsplit.trace(net, torch.randn(2, 4))
    assert not traced.report.warnings
    for batch in (1, 2, 5):
        x = torch.randn(batch, 4)
        assert_same(traced(x), net(x))


def test_items_that_are_used_alone_stay_items() -> None:
    net = Net(lambda x: (lambda parts: torch.cat(parts, dim=1) * parts[0].mean())(x.chunk(2, dim=1)))
    traced = fxsplit.trace(net, torch.randn(2, 4))
    assert [node.name for node in traced.graph.nodes].count("getitem") == 1
    x = torch.randn(3, 4)
    assert_same(traced(x), net(x))
