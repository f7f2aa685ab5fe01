"""Calls of traced and split models with the arguments that the original takes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxsplit
from fxsplit import InputError
from tests.checks import assert_same


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, scale: float = 1.0, *, mode: str = "plain", other: Any = None) -> Tensor:
        x = self.first(x) * scale
        return self.second(x if mode == "plain" else x.exp())


X = torch.randn(3, 4)
EXAMPLE: Any = ((X, 2.0), {"mode": "exp"})


@pytest.fixture
def model() -> nn.Module:
    return Scaled()


def nets(model: nn.Module) -> list[nn.Module]:
    traced = fxsplit.trace(model, EXAMPLE)
    return [traced, copy.deepcopy(traced), fxsplit.split(traced, "first", init="copy", heads=1)]


def test_constants_of_the_example_may_be_given_or_left_out(model: nn.Module) -> None:
    expected = model(X, 2.0, mode="exp")
    for net in nets(model):
        assert_same(net(X), expected)
        assert_same(net(X, 2.0), expected)
        assert_same(net(X, 2.0, mode="exp"), expected)
        assert_same(net(mode="exp", scale=2.0, x=X), expected)


def test_the_place_of_what_the_example_gave_by_keyword_is_not_known(model: nn.Module) -> None:
    net = fxsplit.trace(model, {"x": X, "mode": "exp", "scale": 2.0})
    assert_same(net(X, scale=2.0), model(X, 2.0, mode="exp"))
    assert_same(net(X, mode="exp"), model(X, 2.0, mode="exp"))
    with pytest.raises(InputError, match="got 2 positional arguments"):
        net(X, 2.0)


def test_heads_take_the_same_arguments(model: nn.Module) -> None:
    net = fxsplit.split(fxsplit.trace(model, EXAMPLE), "first", init="copy")
    for output in net.head_outputs(X, 2.0, mode="exp"):
        assert_same(output, model(X, 2.0, mode="exp"))


def test_other_constants_are_refused(model: nn.Module) -> None:
    for net in nets(model):
        with pytest.raises(InputError, match=r"'scale' is 2\.0 in the graph.*got 3\.0"):
            net(X, 3.0)
        with pytest.raises(InputError, match=r"'scale' is 2\.0 in the graph.*got 2"):
            net(X, 2)
        with pytest.raises(InputError, match=r"'mode' is 'exp' in the graph.*got 'plain'"):
            net(X, mode="plain")
        with pytest.raises(InputError, match="no 'other'"):
            net(X, other=1)
        with pytest.raises(InputError, match="'x' is missing"):
            net(mode="exp")


def test_errors_of_the_model_stay_what_they_are(model: nn.Module) -> None:
    net = fxsplit.trace(model, EXAMPLE)

    def broken(*args: Any) -> None:
        raise TypeError("mine")

    net.get_submodule("first").register_forward_pre_hook(broken)
    with pytest.raises(TypeError, match="mine"):
        net(X)
