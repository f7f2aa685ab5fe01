"""What follows the dtype when a trace is cast, and what the report says of the rest."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxsplit._trace import trace
from tests.checks import assert_same

Last = Callable[[Tensor, Tensor], Tensor]


class Net(nn.Module):
    """A layer, and a step behind it that gets the input and the layer's output."""

    def __init__(self, last: Last) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x, self.lin(x))


FOLLOWED: dict[str, Last] = {
    "cast": lambda x, y: y + torch.arange(4).to(x.dtype),
    "new tensor": lambda x, y: y + torch.arange(4, dtype=y.dtype),
    "smallest": lambda x, y: y.masked_fill(torch.arange(4) > 1, torch.finfo(x.dtype).min),
    "largest": lambda x, y: y.clamp(max=torch.finfo(y.dtype).max),
    "rounding": lambda x, y: y / (y.abs() + torch.finfo(y.dtype).eps),
    "positive": lambda x, y: y.abs().clamp(min=torch.finfo(y.dtype).tiny).log(),
    "precise": lambda x, y: y.softmax(-1, dtype=torch.float32).to(y.dtype),
    "fixed": lambda x, y: y.float().clamp(min=torch.finfo(torch.float16).min).type_as(x),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("last", FOLLOWED.values(), ids=FOLLOWED)
def test_a_cast_trace_is_a_trace_of_the_cast_model(last: Last, dtype: torch.dtype) -> None:
    net = Net(last).eval()
    traced = trace(net, torch.randn(2, 4))
    assert traced.report.specialised == []
    cast, model = copy.deepcopy(traced).to(dtype), copy.deepcopy(net).to(dtype)
    x = torch.randn(3, 4).to(dtype)
    assert_same(cast(x), model(x))


def test_a_value_chosen_by_dtype_is_reported() -> None:
    traced = trace(Net(lambda x, y: y * (2.0 if x.dtype is torch.float32 else 3.0)), torch.randn(2, 4))
    assert traced.report.specialised == ["2.0 in the model itself, in another dtype 3.0"]


def test_a_tensor_chosen_by_dtype_is_reported() -> None:
    traced = trace(Net(lambda x, y: y * (y if x.dtype is torch.float32 else x)), torch.randn(2, 4))
    assert traced.report.specialised == ["a tensor in the model itself, in another dtype another tensor"]


def test_arguments_chosen_by_dtype_are_reported() -> None:
    traced = trace(Net(lambda x, y: y.sum((0, 1) if x.dtype is torch.float32 else 1)), torch.randn(2, 4))
    assert traced.report.specialised == ["sum in the model itself, in another dtype with other arguments"]


def test_an_operation_chosen_by_dtype_is_reported() -> None:
    traced = trace(Net(lambda x, y: y.relu() if x.dtype is torch.float32 else y.exp()), torch.randn(2, 4))
    (line,) = traced.report.specialised
    assert line.startswith("torch.float32: ")
    assert "runs exp (in the model itself) where it ran relu" in line


def test_a_model_of_one_dtype_only_is_reported() -> None:
    def same_dtype(x: Tensor, y: Tensor) -> Tensor:
        if y.dtype is not torch.float32:
            raise ValueError("float32 only")
        return y

    traced = trace(Net(same_dtype), torch.randn(2, 4))
    assert traced.report.specialised == ["torch.float32: in another dtype it raises float32 only"]


def test_what_nobody_uses_is_not_reported() -> None:
    def unused(x: Tensor, y: Tensor) -> Tensor:
        torch.zeros(4).add(2.0 if x.dtype is torch.float32 else 3.0)
        return y

    assert trace(Net(unused), torch.randn(2, 4)).report.specialised == []
