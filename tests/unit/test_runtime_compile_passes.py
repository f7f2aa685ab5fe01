"""The passes of `sparsity.compile` one by one: calls in place, fusion, regions, buffers, packing, costs."""

from __future__ import annotations

import itertools
import pickle
import warnings
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

import sparsity
from sparsity.runtime import _cost
from sparsity.runtime._activations import FUNCTIONS, of_module
from sparsity.runtime._assemble import dense_ops, look
from sparsity.runtime._facts import observe
from sparsity.runtime._memory import ALIGNMENT, Lifetime, first_fit
from sparsity.runtime._model import Work, dense_seconds, sparse_seconds
from sparsity.runtime._operands import Activation
from sparsity.runtime._ops import Conv, Layer, Linear
from sparsity.runtime._packing import PackedWeight, pack_weight, unpack_weight
from sparsity.runtime._region import Region


class Written(nn.Module):
    """A linear layer, then what the test says."""

    def __init__(self, rest: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.rest = nn.Linear(6, 6), rest
        self.second = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.rest(self.fc(x), x))


def read_after(y: Tensor, x: Tensor) -> Tensor:
    z = y + x
    y.add_(1)
    return z * y


def read_through_a_view(y: Tensor, x: Tensor) -> Tensor:
    view = y.view(-1)
    y.add_(1)
    return y * view.view(-1, 6)


def written_through_a_view(y: Tensor, x: Tensor) -> Tensor:
    y[:, :3].mul_(2)
    return y + x


def written_twice(y: Tensor, x: Tensor) -> Tensor:
    y.relu_()
    z = y * 2
    y += x
    return z + y


def by_function(y: Tensor, x: Tensor) -> Tensor:
    z = y - x
    F.relu(y, inplace=True)
    return torch.relu_(z) + y


def copied_into(y: Tensor, x: Tensor) -> Tensor:
    z = y * 1
    z[:, 0].copy_(x[:, 1])
    return z + y


IN_PLACE = [read_after, read_through_a_view, written_through_a_view, written_twice, by_function, copied_into]


@pytest.mark.parametrize("rest", IN_PLACE)
@pytest.mark.parametrize("kernel", [1e-9, 1.0], ids=["sparse", "dense"])
def test_calls_in_place(rest: Callable[[Tensor, Tensor], Tensor], kernel: float) -> None:
    model = Written(rest).eval()
    graph = fx.Tracer().trace(model)
    net = fx.GraphModule(model, graph)
    with torch.no_grad():
        model.fc.weight[0] = model.second.weight[1] = 0
    with warnings.catch_warnings(), mock.patch.object(_cost, "sparse_seconds", return_value=kernel):
        warnings.simplefilter("ignore", sparsity.NoEffectWarning)
        fast = sparsity.compile(net, torch.randn(2, 6), tune=False)
    for batch in (1, 2, 4):
        x = torch.randn(batch, 6)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-6)


def test_chains_are_only_what_shares_written_memory() -> None:
    def facts_of(rest: Callable[[Tensor, Tensor], Tensor]) -> list[list[str]]:
        model = Written(rest).eval()
        graph = fx.Tracer().trace(model)
        facts = observe(model, graph, ((torch.randn(2, 6),), {}))
        return [[node.name for node in chain] for chain in facts.chains]

    assert facts_of(read_after) == []
    assert facts_of(written_twice) == []
    (chain,) = facts_of(read_through_a_view)
    assert chain == ["fc", "view", "add_", "view_1", "mul"]


def layers(model: nn.Module, x: Tensor) -> list[Layer]:
    graph = fx.Tracer().trace(model.eval())
    return dense_ops(look(model, graph, ((x,), {}))).layers


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + x)


def test_what_follows_a_layer_is_folded_into_it() -> None:
    model = Residual().eval()
    nn.init.uniform_(model.bn1.running_var, 0.5, 2)  # pyright: ignore
    nn.init.uniform_(model.bn1.running_mean)  # pyright: ignore
    first, second = layers(model, torch.randn(2, 3, 4, 4))
    assert first.activation is second.activation is Activation.RELU
    assert first.residual is None
    assert second.residual is not None
    assert second.residual.name == "x"
    scale = model.bn1.weight / (model.bn1.running_var + model.bn1.eps).sqrt()  # pyright: ignore
    torch.testing.assert_close(first.weight(), model.conv1.weight * scale.view(-1, 1, 1, 1))
    assert model.conv1.bias is not None
    shift = model.bn1.bias - model.bn1.running_mean * scale  # pyright: ignore
    torch.testing.assert_close(first.bias, model.conv1.bias * scale + shift)


class Preactivated(nn.Module):
    def __init__(self, used_twice: bool) -> None:
        super().__init__()
        self.bn, self.conv, self.used_twice = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1), used_twice

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.bn(x))
        return self.conv(active) + (active if self.used_twice else x)


@pytest.mark.parametrize("used_twice", [False, True])
def test_a_norm_before_a_layer_goes_into_its_input(used_twice: bool) -> None:
    model = Preactivated(used_twice).eval()
    with torch.no_grad():
        model.conv.weight[:2] = 0
    nn.init.uniform_(model.bn.running_mean, -1, 1)  # pyright: ignore
    net = fx.symbolic_trace(model)
    x = torch.randn(2, 4, 5, 5)
    with mock.patch.object(_cost, "sparse_seconds", return_value=1e-9):
        fast = sparsity.compile(net, x, tune=False)
    (region,) = fast.program.children()
    assert isinstance(region, Region)
    assert [step.kind for step in region.plan.steps] == (["affine", "conv2d"] if used_twice else ["conv2d"])
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-6)


class Around(nn.Module):
    """Two sparse layers with a call between that no plan holds, and a way around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(torch.cumsum(y, 1)) * y


def test_a_region_is_never_left_and_entered_again() -> None:
    model = Around().eval()
    with torch.no_grad():
        model.first.weight[0] = model.second.weight[0] = 0
    x = torch.randn(3, 6)
    with mock.patch.object(_cost, "sparse_seconds", return_value=1e-9):
        fast = sparsity.compile(fx.symbolic_trace(model), x, tune=False)
    assert fast.report().regions == 2
    assert fast.report().others == {"cumsum": 1}
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-6)


lifetimes = st.lists(
    st.tuples(st.integers(1, 100), st.integers(0, 8), st.integers(0, 8)).map(
        lambda each: Lifetime(each[0], min(each[1:]), max(each[1:]))
    ),
    max_size=12,
)


@given(lifetimes)
def test_buffers_that_live_together_lie_apart(lives: list[Lifetime]) -> None:
    offsets, arena = first_fit(dict(enumerate(lives)))
    assert set(offsets) == set(range(len(lives)))
    for index, life in enumerate(lives):
        assert offsets[index] % ALIGNMENT == 0
        assert offsets[index] + life.floats <= arena
    for (i, a), (j, b) in itertools.combinations(enumerate(lives), 2):
        if a.first <= b.last and b.first <= a.last:
            assert offsets[i] + a.floats <= offsets[j] or offsets[j] + b.floats <= offsets[i]


def test_buffers_of_a_chain_take_turns() -> None:
    # Each step reads the buffer before it, so two places serve for any number of steps.
    lives = {index: Lifetime(64, index, index + 1) for index in range(10)}
    offsets, arena = first_fit(lives)
    assert arena == 128
    assert sorted(set(offsets.values())) == [0, 64]


@given(st.integers(1, 5), st.integers(1, 40), st.floats(0, 1))
def test_packed_weights_come_back(rows: int, columns: int, density: float) -> None:
    weight = torch.randn(rows, columns) * (torch.rand(rows, columns) < density)
    packed = pickle.loads(pickle.dumps(pack_weight(weight)))
    assert torch.equal(unpack_weight(packed), weight)
    if isinstance(packed, PackedWeight):
        assert len(packed.bits) == -(-weight.numel() // 8)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class SoftSilu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(F.silu(x), -1)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.ReLU(), Activation.RELU),
        (nn.GELU(), Activation.GELU),
        (nn.GELU(approximate="tanh"), Activation.GELU_TANH),
        (nn.SiLU(), Activation.SILU),
        (Swish(), Activation.SILU),
        (nn.Hardswish(), Activation.HARDSWISH),
        (nn.LeakyReLU(), None),
        (nn.ELU(), None),
        (SoftSilu(), None),
        (nn.Softmax(-1), None),
        (nn.PReLU(), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_activations_are_known_by_what_they_compute(module: nn.Module, expected: Activation | None) -> None:
    assert of_module(module) is expected
    if expected is not None:
        x = torch.randn(4, 4)
        torch.testing.assert_close(FUNCTIONS[expected](x), module(x))


def test_costs_grow_with_nonzeros_and_cross_the_dense_kernel() -> None:
    def work(density: float) -> Work:
        return Work("conv2d", (160, 160, 3, 3), int(density * 230_400), 1024, 163_840, size=(32, 32))

    times = [sparse_seconds(work(density), "avx512") for density in (0.01, 0.05, 0.2, 0.5, 1.0)]
    assert times == sorted(times)
    assert times[0] < dense_seconds(work(0.01), "avx512") / 5
    assert times[-1] > dense_seconds(work(1.0), "avx512")
    assert sparse_seconds(work(0.2), "avx2") > sparse_seconds(work(0.2), "avx512")


def test_layers_that_no_kernel_takes_are_named() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep, self.wide = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, dilation=2)
            self.plain = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.plain(self.wide(self.deep(x)))

    model = Grouped().eval()
    with torch.no_grad():
        model.plain.weight[:3] = model.deep.weight[:3] = model.wide.weight[:3] = 0
    x = torch.randn(2, 4, 9, 9)
    with mock.patch.object(_cost, "sparse_seconds", return_value=1e-9):
        fast = sparsity.compile(fx.symbolic_trace(model), x, tune=False)
    reasons = {layer.path: layer.reason for layer in fast.report().layers if layer.kernel == "dense"}
    assert reasons == {"deep": "no sparse kernel for groups", "wide": "no sparse kernel for dilation"}
    assert [layer.path for layer in fast.report().fallbacks] == ["deep", "wide"]
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-6)


def test_work_of_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(5 * 4 * 4, 7))
    conv, linear = layers(model, torch.randn(6, 3, 8, 8))
    assert isinstance(conv, Conv)
    assert isinstance(linear, Linear)
    graph = fx.Tracer().trace(model)
    ops = dense_ops(look(model, graph, ((torch.randn(6, 3, 8, 8),), {})))
    works = [_cost.work_of(layer, ops.source.shapes, 10, 6, ops.source.facts.batch) for layer in ops.layers]
    assert [work.pixels for work in works] == [6 * 4 * 4, 6]
    assert [work.inputs for work in works] == [6 * 3 * 8 * 8, 6 * 80]
