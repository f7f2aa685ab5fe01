"""Inference mode of the caller does not reach the tensors that tracing and surgery make."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxsplit
from fxsplit._errors import TraceError
from fxsplit._exclusive import exclusive
from fxsplit._trace import trace
from tests.checks import assert_same, state_storages


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.table = torch.linspace(0, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.lin(x) * self.table).relu())


def trains(net: nn.Module) -> None:
    """Every parameter gets a gradient, and nothing is an inference tensor."""
    net.zero_grad()
    net.train()(torch.randn(5, 4)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert not any(tensor.is_inference() for tensor in [*net.parameters(), *net.buffers()])


def test_a_trace_made_in_inference_mode_trains() -> None:
    net = Net()
    with torch.inference_mode():
        traced = trace(net, torch.randn(2, 4))
        assert torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
    x = torch.randn(3, 4)
    assert_same(traced.eval()(x), net.eval()(x))
    trains(traced)


@pytest.mark.parametrize("init", ["fresh", "copy", Net])
def test_a_split_made_in_inference_mode_trains(init: str | Callable[[], nn.Module]) -> None:
    traced = trace(Net(), torch.randn(2, 4))
    with torch.inference_mode():
        net = fxsplit.split(traced, "norm", init=init)
    trains(net)
    assert not state_storages(net) & state_storages(traced)


def test_a_masked_network_made_in_inference_mode_trains() -> None:
    model = Net()
    with torch.inference_mode():
        net = fxsplit.neurotrailify(model, "norm", sparsity=0.25, example=torch.randn(2, 4))
    trains(net)


@pytest.mark.parametrize(
    ("mode", "grad"), [(torch.no_grad, False), (torch.inference_mode, False), (torch.enable_grad, True)]
)
def test_gradients_stay_as_the_caller_wants_them(mode: Callable[[], Any], grad: bool) -> None:
    with mode():
        with exclusive():
            assert not torch.is_inference_mode_enabled()
            assert torch.is_grad_enabled() is grad
        assert torch.is_inference_mode_enabled() is (mode is torch.inference_mode)


@pytest.mark.parametrize("part", ["parameters", "buffers"])
def test_a_model_made_in_inference_mode_is_refused_with_a_way_out(part: str) -> None:
    net = Net()
    with torch.inference_mode():
        inside = Net()
    if part == "parameters":
        net.last = inside.last
        match = r"'last.weight' was made under torch.inference_mode"
    else:
        net.norm.running_mean = inside.norm.running_mean
        match = r"'norm.running_mean' was made under torch.inference_mode"
    with pytest.raises(TraceError, match=match + r".*copy.deepcopy"):
        trace(net, torch.randn(2, 4))
    trains(trace(copy.deepcopy(net), torch.randn(2, 4)))
