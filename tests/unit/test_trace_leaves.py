"""Which modules are kept whole: by rule, by request, and because their inside cannot be a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxsplit._errors import FxSplitWarning, TraceError
from fxsplit._trace import trace
from fxsplit._trace._leaves import is_large, is_leaf
from tests.checks import assert_same


class MyLinear(nn.Linear):
    pass


class ScaleNorm(nn.Module):
    """Owns a parameter; its child owns none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) * self.weight


class Block(nn.Module):
    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.inner = inner if inner is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.lin(x))


class Childless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


@pytest.mark.parametrize(
    ("module", "leaf"),
    [
        (nn.Linear(4, 4), True),
        (nn.LSTM(4, 4), True),
        (nn.MultiheadAttention(4, 2), True),
        (MyLinear(4, 4), True),
        (ScaleNorm(), True),
        (Childless(), True),
        (Block(), False),
        (nn.Sequential(nn.Linear(4, 4)), False),
        (nn.Sequential(), False),
        (nn.ModuleList([nn.Linear(4, 4)]), False),
        (nn.TransformerEncoderLayer(4, 2), True),
        (nn.TransformerDecoderLayer(4, 2), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_default_rules(module: nn.Module, leaf: bool) -> None:
    assert is_leaf(module) is leaf


def calls(traced: torch.fx.GraphModule) -> list[str]:
    return [n.target for n in traced.graph.nodes if n.op == "call_module"]


def test_large_is_half_of_the_parameters_or_a_stage_of_blocks() -> None:
    net = nn.Sequential(nn.Linear(4, 4), Block(), nn.Sequential(Block(), Block()), nn.Linear(4, 100))
    assert is_large(net, "")
    assert not is_large(net, "1")
    assert is_large(net, "2")
    assert is_large(net, "3")


def test_modules_named_as_leaves_are_kept_whole() -> None:
    net = nn.Sequential(Block(), Block(), nn.Linear(4, 2))
    x = torch.randn(3, 4)
    assert calls(trace(net, x)) == ["0.lin", "0.inner", "1.lin", "1.inner", "2"]
    traced = trace(net, x, leaf=["1"])
    assert calls(traced) == ["0.lin", "0.inner", "1", "2"]
    assert traced.report.coarse_leaves == []
    assert_same(traced(x), net(x))


def test_an_unknown_leaf() -> None:
    net = nn.Sequential(Block(), nn.Linear(4, 2))
    with pytest.raises(TraceError, match=r"leaf names '0.lim'.*Did you mean '0.lin'"):
        trace(net, torch.randn(2, 4), leaf=["0.lim"])
    with pytest.raises(TraceError, match=r"leaf=\['0.lin'\]"):
        trace(net, torch.randn(2, 4), leaf="0.lin")


class Gate(nn.Module):
    """Control flow that follows the data."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.mean() > 0 else self.b(x)


def check_both_ways(net: nn.Module) -> Any:
    traced = trace(net, torch.ones(2, 4))
    for x in (torch.ones(3, 4), -torch.ones(3, 4)):
        assert_same(traced(x), net(x))
    return traced


def test_data_dependent_control_flow_keeps_its_module_whole() -> None:
    traced = check_both_ways(nn.Sequential(Block(Gate()), Block(Gate()), nn.Linear(4, 20)))
    assert [path for path, _ in traced.report.coarse_leaves] == ["0.inner", "1.inner"]
    assert "0.inner" in calls(traced)
    assert all("follows data" in why for _, why in traced.report.coarse_leaves)


def test_control_flow_in_a_large_module_is_recorded_with_a_warning() -> None:
    net = nn.Sequential(Block(Gate()), nn.Linear(4, 2))
    with pytest.warns(FxSplitWarning, match="follows data"):
        traced = trace(net, torch.ones(2, 4))
    assert any(line.endswith("in 0.inner") for line in traced.report.guards)


def test_control_flow_in_the_model_s_own_forward_is_refused() -> None:
    with pytest.raises(TraceError, match=r"Gate.forward itself branches on data.*module of its own"):
        trace(Gate(), torch.ones(2, 4))
    assert_same(calls(trace(nn.Sequential(Gate(), nn.Linear(4, 90)), torch.ones(2, 4))), ["0", "1"])


class OnlyWhenMasked(nn.Module):
    """Looks at a mask in Python, as many language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        if attention_mask.all():
            return self.lin(x)
        return self.lin(x * attention_mask[:, :, None])


@pytest.mark.parametrize("padded", [False, True])
def test_masks_are_recorded_with_a_hidden_token(padded: bool) -> None:
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 1 - int(padded)
    net = OnlyWhenMasked()
    traced = trace(net, (torch.randn(2, 6, 4), mask))
    assert traced.report.guards == ["bool() was False in the model"]
    assert traced.report.warnings == []
    assert traced.example[0][1] is mask
    x = torch.randn(3, 6, 4)
    for hidden in (0, 2, 5):
        mask = torch.ones(3, 6, dtype=torch.long)
        mask[0, 6 - hidden :] = 0
        assert_same(traced(x, mask), net(x, mask))


class State:
    """Something that a graph cannot hold."""

    def __init__(self) -> None:
        self.seen = 0


class UsesState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor, state: State) -> Tensor:
        state.seen += 1
        return x * self.weight * state.seen


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = UsesState(), UsesState()

    def forward(self, x: Tensor) -> Tensor:
        state = State()
        return self.second(self.first(x, state), state)


def test_a_leaf_that_takes_an_opaque_object_is_recorded_from_the_inside() -> None:
    net = Stateful()
    traced = trace(net, torch.randn(2, 4))
    assert calls(traced) == []
    assert {n.target for n in traced.graph.nodes if n.op == "get_attr"} == {"first.weight", "second.weight"}
    x = torch.randn(3, 4)
    assert_same(traced(x), net(x))


class Result:
    def __init__(self, value: Tensor) -> None:
        self.value = value
        self.name = "result"


class Produces(nn.Module):
    def forward(self, x: Tensor) -> Result:
        return Result(x * 2)


class Consumes(nn.Module):
    def forward(self, result: Result, more: Any) -> Tensor:
        assert result.name == "result"
        return result.value + more[0]["x"]


class Objects(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.produces, self.consumes = Produces(), Consumes()

    def forward(self, x: Tensor) -> Tensor:
        result = self.produces(x)
        return self.consumes(result, [{"x": result.value}]) + result.value


def test_objects_travel_between_leaves() -> None:
    traced = trace(Objects(), torch.randn(2, 4))
    assert calls(traced) == ["produces", "consumes"]
    x = torch.randn(3, 4)
    assert_same(traced(x), Objects()(x))


class Sorts(nn.Module):
    """As many operations as there are positive rows: the recordings cannot be aligned."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert, module in enumerate(self.experts):
            rows = (x.sum(1).abs() * 10).long() % 3 == expert
            if rows.any():
                out[rows] = module(x[rows])
        return out


def test_routing_keeps_its_module_whole() -> None:
    net = nn.Sequential(Block(Sorts()), nn.Linear(4, 4), Block(Sorts()), nn.Linear(4, 30)).eval()
    traced = trace(net, torch.randn(2, 4))
    assert sorted(path for path, _ in traced.report.coarse_leaves) == ["0.inner", "2.inner"]
    x = torch.randn(17, 4)
    assert_same(traced(x), net(x))


class HandlesFailure(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.lin(x)
        y.data = y.data * 2
        return y


def test_a_module_that_replaces_data_is_kept_whole() -> None:
    net = nn.Sequential(nn.Linear(4, 4), HandlesFailure(), nn.Linear(4, 9))
    traced = trace(net, torch.randn(2, 4))
    assert traced.report.coarse_leaves == [("1", "it assigns tensor.data")]
    x = torch.randn(3, 4)
    assert_same(traced(x), net(x))


class _MaskReader(nn.Module):
    """Skips its mask if nothing is hidden, as transformers models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if not bool(mask.all()):
            x = x * mask[..., None]
        for layer in self.layers:
            x = layer(x)
        return x


class _SmallTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower, self.large = _MaskReader(), nn.Linear(4, 4000)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.large(self.tower(x, mask))


def test_a_tower_that_reads_its_mask_is_recorded_from_the_inside_however_small() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    traced = trace(_SmallTower(), (torch.randn(2, 3, 4), mask))
    assert traced.report.coarse_leaves == []
    assert traced.report.guards == ["bool() was False in tower"]
    assert {"tower.layers.0.0", "tower.layers.2.1"} <= {node.target for node in traced.graph.nodes}
