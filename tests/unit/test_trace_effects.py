"""What a graph must not lose: gradients switched off, writes in place, reuse, constants, autograd functions."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fxsplit._trace import trace
from tests.checks import assert_same, scalar


def check(net: nn.Module, *example: Any, batch: int = 5) -> Any:
    """Outputs and gradients of parameters and inputs, at the example and at another batch size."""
    traced = trace(net.eval(), example)
    for size in (example[0].shape[0], batch):
        results = []
        for module in (net, traced):
            torch.manual_seed(size)
            inputs = [torch.randn(size, *x.shape[1:]).requires_grad_() for x in example]
            net.zero_grad()
            out = module(*[x * 1 for x in inputs])
            scalar(out).backward()
            results.append((out, [x.grad for x in inputs], [p.grad for p in net.parameters()]))
        assert_same(results[1], results[0])
    return traced


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            frozen = self.a(x)
            values, _ = frozen.sort(1)
            mask = values > 0
        return self.b(x) * frozen + values.masked_fill(mask, 0.5) + x.detach()


def test_operations_without_gradients_stay_so() -> None:
    check(Detached(), torch.randn(3, 4))


class WritesWithoutGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        with torch.no_grad():
            y.clamp_(min=0.1)
            torch.mul(y, 2, out=torch.empty_like(y))
        return y + x


def test_writes_without_gradient() -> None:
    check(WritesWithoutGradient(), torch.randn(3, 4))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.lin(x)
        first = y[:, :2]
        first.mul_(2)
        y[:, 3] = 7.0
        y[:, 0] += x[:, 1]
        y -= 0.25
        z = self.act(y) + y
        F.relu(z, inplace=True)
        buffer = torch.zeros_like(z)
        buffer[0] = z[0]
        buffer.add_(z).t_().t_()
        return buffer


def test_writes_in_place_are_kept_in_order() -> None:
    check(InPlace(), torch.randn(3, 4))


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.alias = self.lin
        self.drop = nn.Dropout(0.5)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.lin.weight
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(x)
        z = self.drop(y)
        return self.tied(self.alias(self.lin(z) * self.scale) * self.scale) + F.linear(y, self.lin.weight)


def test_modules_parameters_and_identities_used_twice() -> None:
    net = Reused()
    traced = check(net, torch.randn(3, 4))
    calls = [n.target for n in traced.graph.nodes if n.op == "call_module"]
    assert calls == ["drop", "drop", "lin", "lin", "tied"]
    assert traced.get_parameter("lin.weight") is net.lin.weight
    assert len(list(traced.parameters())) == len(list(net.parameters()))


class Properties(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.T.mT + x.new_zeros(x.shape).to(x.dtype) + x.real
        y = 2 - y + (1 / (y.abs() + 1)) ** 2
        top, index = y.topk(2, dim=1)
        low = torch.min(y, dim=1)
        parts = y.split([1, 2, 1], dim=1)
        return (
            top.sum(1, keepdim=True)
            + y.gather(1, index)[..., :1]
            + low.values[:, None]
            + sum(parts)
            + torch.einsum("bi,bj->bij", y, y).mean((-1, -2))[:, None]
            + y[None, ..., torch.tensor([0, 2])].squeeze(0)[:, 1:]
        )


def test_properties_reflected_operators_and_several_results() -> None:
    check(Properties(), torch.randn(3, 4))


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x * factor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * 10, None


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 3, x + 1

    @staticmethod
    def backward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return a - b


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = Scaled.apply(self.lin(x))
        return Double.apply(a, 2.0) * Double.apply(b, 3.0)


def test_autograd_functions_keep_their_backward() -> None:
    traced = check(Custom(), torch.randn(3, 4))
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == [
        "lin",
        "_function_0",
        "_function_1",
        "_function_1",
    ]


class Captures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.table = torch.arange(4.0)
        self.known: Tensor
        self.register_buffer("known", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x) + self.table * self.known + torch.tensor([1.0, 2.0, 3.0, 4.0])


def test_captured_tensors_become_buffers_and_are_reported() -> None:
    net = Captures()
    traced = check(net, torch.randn(3, 4))
    (line,) = traced.report.constants
    assert line == "_tensor_constant_0 (4,) torch.float32 in the model itself"
    assert_same(dict(traced.named_buffers())["_tensor_constant_0"], net.table)
    assert "known" not in traced.state_dict()
    assert traced.get_buffer("known") is net.known


class Hidden(nn.Module):
    """A tensor that comes from outside of torch's functions: no constant, since it follows the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(x.detach().numpy() * 2)


class Unregistered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = [nn.Linear(4, 4)]

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](x)


def test_modules_that_the_model_does_not_know_are_captured_and_reported() -> None:
    net = Unregistered()
    traced = trace(net, torch.randn(3, 4))
    assert len(traced.report.constants) == 2
    x = torch.randn(5, 4)
    assert_same(traced(x), net(x).detach())


def test_a_module_that_leaves_torch_is_kept_whole() -> None:
    net = nn.Sequential(nn.Linear(4, 4), Holder(Hidden()), nn.Linear(4, 4))
    traced = trace(net, torch.randn(3, 4))
    x = torch.randn(5, 4)
    assert_same(traced(x), net(x))
    assert [path for path, _ in traced.report.coarse_leaves] == ["1"]


class Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.lin, self.inner = nn.Linear(4, 4), [inner]

    def forward(self, x: Tensor) -> Tensor:
        return self.inner[0](self.lin(x))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.a, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_flattened_and_said(reentrant: bool) -> None:
    net = Checkpointed(reentrant)
    traced = trace(net, torch.randn(3, 4).requires_grad_())
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["a.0", "a.1"]
    assert any("checkpoint" in line for line in traced.report.dropped)
    x = torch.randn(5, 4)
    assert_same(traced(x), net(x.requires_grad_()))


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.lin(x) @ x.mT


def test_a_module_with_its_own_autocast_is_kept_whole() -> None:
    net = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 4), Autocast())
    traced = trace(net, torch.randn(3, 4))
    assert [path for path, _ in traced.report.coarse_leaves] == ["2"]
    x = torch.randn(3, 4)
    assert_same(traced(x), net(x))


def test_quantities_in_outputs_stay_constants() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        traced = trace(nn.Identity(), torch.randn(2, 3))
    x = torch.randn(4, 3)
    assert_same(traced(x), x)


class WritesLast(nn.Module):
    """The last thing it does is a write through a view of what it returns; it also writes into its input."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        x.add_(1)
        y[:, 0].mul_(3)
        return y


def test_writes_into_outputs_and_inputs() -> None:
    traced = trace(WritesLast(), torch.randn(3, 4))
    x = torch.randn(5, 4)
    ours, theirs = x.clone(), x.clone()
    assert_same((traced(ours), ours), (WritesLast()(theirs), theirs))
