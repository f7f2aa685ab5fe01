"""Train and eval mode in one graph: switches, buffers, random numbers, and what exists in one mode only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxsplit._errors import FxSplitWarning
from fxsplit._trace import trace
from fxsplit._trace._model import ModeSwitch
from tests.checks import assert_same, scalar, seeded


def check_step(net: nn.Module, x: Tensor, **options: Any) -> Any:
    """A train step of the model and of its trace: outputs, gradients and buffers from the same seed."""
    traced = trace(net, x, **options)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    results = []
    for module in (net, traced):
        net.load_state_dict(start)
        net.zero_grad()
        module.train()
        out = seeded(lambda module=module: module(x))
        scalar(out).backward()
        gradients = {name: p.grad for name, p in net.named_parameters()}
        results.append((out, gradients, {name: b.clone() for name, b in net.named_buffers()}))
        module.eval()
        results[-1] += (seeded(lambda module=module: module(x)),)
    assert_same(results[1], results[0])
    return traced


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.lin(x), 0.5, self.training)
        return F.dropout(self.norm(x), p=0.25 if self.training else 0.0)


def test_arguments_that_follow_the_mode_become_switches() -> None:
    traced = check_step(Functional(), torch.randn(8, 6))
    switches = [(m.in_train, m.in_eval) for m in traced.modules() if isinstance(m, ModeSwitch)]
    assert switches == [(True, False), (0.25, 0.0)]
    assert traced.report.warnings == []
    switch = traced.get_submodule("_switch_0")
    assert switch.train()() is True
    assert switch.eval()() is False


def test_the_modes_at_the_time_of_tracing_are_kept() -> None:
    net = nn.Sequential(nn.Sequential(Functional()), Functional()).train()
    net[0].eval()
    traced = trace(net, torch.randn(4, 6))
    modes = {path: module.training for path, module in traced.named_modules()}
    assert modes[""]
    assert not modes["0"]
    assert not modes["0.0.norm"]
    assert modes["1.norm"]
    assert [modes[f"_switch_{n}"] for n in range(4)] == [False, False, True, True]


class StochasticDepth(nn.Module):
    """An operation more in train mode: the small module is kept whole."""

    def forward(self, x: Tensor) -> Tensor:
        return x if not self.training else x * (torch.rand(len(x), 1) > 0.3)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.drop = nn.Linear(6, 6), StochasticDepth()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.lin(x))


def test_drop_path() -> None:
    check_step(nn.Sequential(Residual(), Residual()), torch.randn(8, 6))


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + torch.randn_like(x)
        return self.lin(x)


def test_a_module_that_does_something_else_in_train_mode_is_kept_whole() -> None:
    traced = check_step(nn.Sequential(nn.Linear(6, 6), Noisy(), nn.Linear(6, 6)), torch.randn(8, 6))
    assert [path for path, _ in traced.report.coarse_leaves] == ["1"]


def test_what_only_train_mode_does_at_the_root_is_left_out_and_said() -> None:
    net = Noisy()
    with pytest.warns(FxSplitWarning, match="train mode only is left out"):
        traced = trace(net, torch.randn(8, 6))
    assert any(line.startswith("randn_like") for line in traced.report.dropped)
    x = torch.randn(3, 6)
    assert_same(traced(x), net.eval()(x))
    net.train()
    assert_same(traced.train()(x), net.lin(x))


class TrainStatistics(nn.Module):
    """Keeps statistics in train mode, by hand and by a norm whose result nobody uses."""

    mean: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.unused, self.drop = nn.BatchNorm1d(6), nn.Dropout()
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("scale", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.lin(x))
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
            self.unused(x)
            self.drop(x)
        return (x - self.mean) * self.scale


def test_buffers_that_are_no_longer_updated_are_named() -> None:
    net = TrainStatistics()
    with pytest.warns(FxSplitWarning) as caught:
        traced = trace(net, torch.randn(8, 6))
    (line,) = [line for line in traced.report.warnings if "no longer updated" in line]
    assert line.startswith("no longer updated: 'mean', the buffers of 'unused' (")
    assert line in [str(warning.message) for warning in caught]
    traced.train()(torch.randn(8, 6))
    assert torch.equal(net.mean, torch.zeros(6))
    assert net.unused.num_batches_tracked == 0
    assert net.norm.num_batches_tracked == 1


def test_nothing_is_said_of_buffers_where_none_is_updated() -> None:
    with pytest.warns(FxSplitWarning, match="train mode only is left out"):
        traced = trace(Noisy(), torch.randn(8, 6))
    assert "updated" not in str(traced.report)


class AuxiliaryHead(nn.Module):
    """Returns something else in train mode, from the same operations."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.aux = nn.Linear(6, 4), nn.Linear(6, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Any:
        x = F.dropout(x, 0.5, self.training)
        main, aux = self.lin(x), self.aux(x)
        return {"out": main, "aux": aux} if self.training else {"out": main}


def test_an_output_of_train_mode_only_is_left_out_and_said() -> None:
    net = AuxiliaryHead()
    with pytest.warns(FxSplitWarning, match="another structure"):
        traced = trace(net, torch.randn(4, 6))
    x = torch.randn(3, 6)
    got = seeded(lambda: traced.train()(x))
    assert got.keys() == {"out"}
    assert_same(got["out"], seeded(lambda: net.train()(x))["out"])


class RunningMean(nn.Module):
    """A norm written by hand whose buffer is updated in place by train mode only."""

    def __init__(self, rebind: bool) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(6))
        self.rebind = rebind

    def forward(self, x: Tensor) -> Tensor:
        x = self.lin(x)
        if self.training:
            with torch.no_grad():
                if self.rebind:
                    self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
                else:
                    self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return x - self.mean


@pytest.mark.parametrize("rebind", [False, True])
def test_buffers_follow_train_steps(rebind: bool) -> None:
    net = nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 6), RunningMean(rebind))
    traced = check_step(net, torch.randn(8, 6))
    assert [path for path, _ in traced.report.coarse_leaves] == ["2"]


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.lin(x) * 2


def test_a_buffer_that_every_call_writes_is_written_by_the_graph() -> None:
    net = Counter()
    traced = trace(net, torch.randn(2, 6))
    assert net.calls == 0
    traced(torch.randn(2, 6))
    traced(torch.randn(2, 6))
    assert net.calls == 2


class Dead(nn.Module):
    """Dropout and a norm whose results nobody uses still move the random state and the running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.drop, self.norm, self.last = nn.Linear(6, 6), nn.Dropout(), nn.BatchNorm1d(6), nn.Dropout()
        self.unused = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lin(x)
        self.norm(self.drop(x))
        self.unused(x)
        return self.last(x)


def test_dead_code_goes_unless_it_moves_the_state() -> None:
    traced = check_step(Dead(), torch.randn(8, 6))
    calls = [n.target for n in traced.graph.nodes if n.op == "call_module"]
    assert calls == ["lin", "drop", "norm", "last"]


class LayerDrop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.training and torch.rand(()) < 0.5:
                continue
            x = block(x)
        return x


def test_layer_drop_is_left_out_and_said() -> None:
    net = LayerDrop()
    with pytest.warns(FxSplitWarning, match="train mode only is left out"):
        traced = trace(net, torch.randn(4, 6))
    x = torch.randn(3, 6)
    assert_same(traced.eval()(x), net.eval()(x))


def test_evaluation_that_draws_random_numbers() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (torch.rand(x.shape[0], 1, device=x.device) > 0.5) + torch.randn_like(x)

    check_step(nn.Sequential(nn.Linear(6, 6), Masked()), torch.randn(8, 6))
