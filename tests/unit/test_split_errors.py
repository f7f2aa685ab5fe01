"""Arguments that no model can be split with, and models that cannot be split."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxsplit
from fxsplit import FxSplitError, FxSplitWarning, SplitError


@pytest.fixture
def traced() -> fxsplit.TracedModel:
    return fxsplit.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "at least 1, got 0"),
        ({"heads": -2}, "at least 1, got -2"),
        ({"heads": 2.0}, "at least 1, got 2.0"),
        ({"heads": True}, "at least 1, got True"),
        ({"heads": "3"}, "at least 1, got '3'"),
        ({"heads": None}, "at least 1, got None"),
        ({"init": "random"}, "'fresh', 'copy' or a function.*got 'random'"),
        ({"init": None}, "got None"),
        ({"init": nn.Linear(1, 1)}, "at every call, got a model"),
        ({"vote": "median"}, r"'mean', 'prob' or a function of the stacked scores \[M, ...\], got 'median'"),
        ({"vote": 3}, "got 3"),
        ({"tied": "both"}, "'untie' or 'share', got 'both'"),
        ({"share": ("9",)}, "no module '9'"),
    ],
)
def test_arguments(traced: fxsplit.TracedModel, options: dict[str, Any], message: str) -> None:
    before = {name: value.clone() for name, value in traced.state_dict().items()}
    with pytest.raises(SplitError, match=message) as error:
        fxsplit.split(traced, "1", **options)
    assert isinstance(error.value, (FxSplitError, ValueError))
    assert all(torch.equal(value, before[name]) for name, value in traced.state_dict().items())


def test_a_split_model_is_not_split_again(traced: fxsplit.TracedModel) -> None:
    net = fxsplit.split(traced, "1", init="copy")
    with pytest.raises(SplitError, match="split already"):
        fxsplit.split(net, "1")
    with pytest.raises(SplitError, match="split already"):
        fxsplit.find_cuts(net)
    with pytest.raises(FxSplitError):
        fxsplit.neurotrailify(net, "1")


def test_a_factory_of_other_models(traced: fxsplit.TracedModel) -> None:
    with pytest.raises(SplitError):
        fxsplit.split(traced, "1", init=lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 9)))


def test_a_module_that_cannot_be_copied() -> None:
    class Holder(nn.Linear):
        def __deepcopy__(self, memo: dict[int, Any]) -> Holder:
            raise RuntimeError("not me")

    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Holder(6, 3))
    with pytest.raises(SplitError, match=r"'2' cannot be copied.*not me"):
        fxsplit.split(fxsplit.trace(model, torch.zeros(2, 4)), "1", init="copy")


def test_parameters_that_stay_equal_are_warned_of() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(32).index_fill(0, torch.tensor([3]), float("inf")))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / self.scale

    model = nn.Sequential(nn.Linear(4, 32), Scale(), nn.Linear(32, 3))
    traced = fxsplit.trace(model, torch.zeros(2, 4))
    with pytest.warns(FxSplitWarning, match=r"1\.scale"):
        net = fxsplit.split(traced, "0")
    assert list(net.report.not_redrawn) == ["1.scale"]
    assert "NOT drawn anew: 1.scale" in str(net.report)
    assert fxsplit.split(traced, "0", heads=1).report.not_redrawn
