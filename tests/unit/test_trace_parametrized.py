"""Weights that are computed from other parameters: parametrizations and the older hooks of weight and spectral norm."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fxsplit
import sparsity
from fxsplit._params import parameter_names
from fxsplit._trace import trace
from tests.checks import assert_same, assert_unchanged, scalar, seeded, snapshot, state_storages

X = torch.randn(2, 8)
Wrap = Callable[[Any], Any]


class Symmetric(nn.Module):
    def forward(self, stored: Tensor) -> Tensor:
        return stored.triu() + stored.triu(1).T

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.triu()


class Doubled(nn.Module):
    """Has no inverse: torch stores the plain weight."""

    def forward(self, stored: Tensor) -> Tensor:
        return stored * 2


def by(parametrization: type[nn.Module]) -> Wrap:
    def wrap(layer: nn.Module) -> nn.Module:
        return parametrize.register_parametrization(layer, "weight", parametrization())

    return wrap


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated by torch, and still in use
        return nn.utils.weight_norm(layer)


WRAPS: dict[str, Wrap] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": old_weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "symmetric": by(Symmetric),
    "doubled": by(Doubled),
}
PARTS = {
    "weight_norm": ["parametrizations.weight.original0", "parametrizations.weight.original1"],
    "old weight_norm": ["weight_g", "weight_v"],
    "old spectral_norm": ["weight_orig"],
}
every_kind = pytest.mark.parametrize("kind", WRAPS)
new_kinds = pytest.mark.parametrize("kind", [kind for kind in WRAPS if not kind.startswith("old")])


def parts(kind: str) -> list[str]:
    return PARTS.get(kind, ["parametrizations.weight.original"])


class Reads(nn.Module):
    """Uses a weight without calling the layer that it belongs to."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.lin = layer

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.lin.weight, self.lin.bias) + F.relu(x @ self.lin.weight)  # type: ignore[operator,arg-type]


def layers(kind: str) -> nn.Sequential:
    wrap = WRAPS[kind]
    return nn.Sequential(nn.Linear(8, 8), wrap(nn.Linear(8, 8)), nn.ReLU(), wrap(nn.Linear(8, 8)), nn.Linear(8, 3))


def reading(kind: str) -> nn.Sequential:
    wrap = WRAPS[kind]
    return nn.Sequential(nn.Linear(8, 8), Reads(wrap(nn.Linear(8, 8))), nn.ReLU(), Reads(wrap(nn.Linear(8, 8))))


def check(model: nn.Module, cut: str) -> None:
    """The trace and three copied heads equal the model; nothing is assumed."""
    before = snapshot(model)
    traced = trace(model, X)
    assert str(traced.report) == "trace report: nothing was assumed"
    net = fxsplit.split(traced, cut, init="copy")
    assert_unchanged(before, model)
    model.eval()
    net.eval()
    for batch in (1, 4, 7):
        x = torch.randn(batch, 8)
        with torch.no_grad():
            assert_same(traced.eval()(x), model(x))
            for output in net.head_outputs(x):
                assert_same(output, model(x))
    check_steps(model, traced)


def check_steps(model: nn.Module, traced: nn.Module) -> None:
    """Two train steps on copies of their own: outputs, gradients and buffers (the vectors of spectral_norm)."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    results = []
    for module in (model, traced):
        module.train()
        outputs = [seeded(lambda module=module: module(X)) for _ in range(2)]
        scalar(outputs).backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append((outputs, gradients, {name: buffer.clone() for name, buffer in model.named_buffers()}))
        model.zero_grad()
        for name, buffer in model.named_buffers():
            buffer.detach().copy_(buffers[name])
        module.eval()
    assert_same(results[1], results[0])
    assert all(gradient is not None for gradient in results[1][1])


@every_kind
def test_a_layer_is_one_leaf(kind: str) -> None:
    model = layers(kind)
    assert [node.target for node in trace(model, X).graph.nodes][1:-1] == ["0", "1", "2", "3", "4"]
    check(model, "1")


@new_kinds
def test_a_weight_that_is_read_by_another_module(kind: str) -> None:
    model = reading(kind)
    called = {str(node.target) for node in trace(model, X).graph.nodes if node.op == "call_module"}
    assert {"1.lin.parametrizations.weight", "3.lin.parametrizations.weight"} <= called
    check(model, "2")


def test_spectral_norm_moves_its_vectors_in_train_mode() -> None:
    """Otherwise the checks of buffers above would hold for nothing."""
    model = layers("spectral_norm")
    before = model.get_buffer("1.parametrizations.weight.0._u").clone()
    trace(model, X).train()(X)
    assert not torch.equal(model.get_buffer("1.parametrizations.weight.0._u"), before)


class Scaled(nn.Module):
    """A block with a parameter and a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(8))
        self.lin = nn.Linear(8, 8)
        parametrize.register_parametrization(self, "scale", Doubled())

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x) * self.scale


def test_a_user_s_module_is_recorded_from_the_inside() -> None:
    model = nn.Sequential(Scaled(), nn.ReLU(), Scaled())
    assert "0.lin" in [node.target for node in trace(model, X).graph.nodes]
    check(model, "1")


def test_attention_with_a_computed_projection() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            parametrizations.weight_norm(self.attention.out_proj)
            parametrizations.weight_norm(self.attention, "in_proj_weight")
            self.lin = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.lin(x).unsqueeze(1).expand(-1, 3, -1)
            return self.attention(x, x, x, need_weights=False)[0].mean(1)

    check(nn.Sequential(Attends(), nn.Linear(8, 8), Attends()), "1")


def test_a_model_that_is_parametrized_itself() -> None:
    check_steps(model := parametrizations.weight_norm(nn.Linear(8, 3)), trace(model, X))


class Cached(nn.Module):
    """Calls a layer several times, as a recurrent network does, and reads its weight besides."""

    def __init__(self, layer: nn.Module, read: bool) -> None:
        super().__init__()
        self.lin, self.read = layer, read

    def forward(self, x: Tensor) -> Tensor:
        with parametrize.cached():
            x = self.lin(self.lin(x))
            return x @ self.lin.weight if self.read else x  # type: ignore[operator]


@pytest.mark.parametrize("read", [False, True])
def test_cached_weights_are_computed_by_the_graph(read: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), Cached(by(Doubled)(nn.Linear(8, 8)), read))
    traced = trace(model, X)
    assert traced.report.constants == []
    assert traced.report.coarse_leaves == []
    gradients = []
    for module in (model, traced):
        scalar(module(X)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        model.zero_grad()
    assert_same(traced(X), model(X))
    # Gradients of the uses add up behind the parametrization, not before it.
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_weight_that_changes_when_it_is_computed_is_computed_as_often_as_in_the_model() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Cached(parametrizations.spectral_norm(nn.Linear(8, 8)), True), nn.ReLU())
    traced = trace(model, X)
    assert [path for path, _ in traced.report.coarse_leaves] == ["1"]
    check_steps(model, traced)
    with pytest.raises(fxsplit.TraceError, match=r"under parametrize.cached\(\) it runs 'lin'.*module of its own"):
        trace(Cached(parametrizations.spectral_norm(nn.Linear(8, 8)), True), X)


def test_a_cache_of_the_caller_is_left_alone() -> None:
    model = layers("weight_norm")
    with parametrize.cached():
        weight = model[1].weight
        traced = trace(model, X)
        assert model[1].weight is weight
    assert traced.report.constants == []
    check_steps(model, traced)


def test_a_weight_that_a_hook_computed_before_is_no_constant() -> None:
    with pytest.raises(fxsplit.TraceError, match="uses a tensor that was computed from parameters elsewhere"):
        trace(Reads(old_weight_norm(nn.Linear(8, 8))), X)


# Copies and the surgery.


@every_kind
def test_copies_share_nothing(kind: str) -> None:
    model = layers(kind)
    traced = trace(model, X)
    net = fxsplit.split(traced, "1", init="copy").eval()
    net(X)
    model.eval()(X)  # the older hooks leave the weight that they computed on the layer
    for made in (net, copy.deepcopy(net), copy.deepcopy(traced)):
        assert not state_storages(made) & state_storages(model)
    assert len({id(type(head.get_submodule("3"))) for head in net.heads}) == (1 if kind.startswith("old") else 3)
    assert_same(copy.deepcopy(net)(X), net(X))
    with torch.no_grad():
        expected = model(X)
        for parameter in net.heads[0].parameters():
            parameter.mul_(3)
    outputs = net.head_outputs(X)
    assert [torch.equal(output, expected) for output in outputs] == [False, True, True]
    assert_same(model(X), expected)


@new_kinds
def test_copies_share_no_cache(kind: str) -> None:
    net = fxsplit.split(trace(layers(kind), X), "1", seed=3).eval()
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    expected = net.head_outputs(X), other.head_outputs(X)
    with parametrize.cached():
        assert_same((net.head_outputs(X), other.head_outputs(X)), expected)


@new_kinds
def test_a_parametrization_of_one_head_is_no_other_s(kind: str) -> None:
    model = layers(kind)
    net = fxsplit.split(trace(model, X), "1", init="copy")
    layer = net.get_submodule("heads.0.3")
    parametrize.register_parametrization(layer, "bias", Doubled())
    parametrize.remove_parametrizations(layer, "weight")
    assert parametrize.is_parametrized(net.get_submodule("heads.1.3"), "weight")
    assert not parametrize.is_parametrized(net.get_submodule("heads.1.3"), "bias")
    assert parametrize.is_parametrized(model[3], "weight")
    assert_same(net.eval().head_outputs(X)[1], model.eval()(X))


@every_kind
def test_parameters_are_counted(kind: str) -> None:
    model = layers(kind)
    net = fxsplit.split(trace(model, X), "1", heads=2)
    assert len(set(parameter_names(net).values())) == sum(1 for _ in net.parameters())
    summary = fxsplit.summary(net)
    trunk = sum(p.numel() for layer in model[:2] for p in layer.parameters())
    head = sum(p.numel() for layer in model[2:] for p in layer.parameters())
    assert summary.total.params == trunk + 2 * head
    assert summary.total.flops == 2 * (64 + 64 + 2 * (64 + 24))


@new_kinds
def test_flops_of_weights_that_are_read(kind: str) -> None:
    net = fxsplit.split(trace(nn.Sequential(nn.Linear(8, 8), Reads(WRAPS[kind](nn.Linear(8, 8)))), X), "0", heads=2)
    path = {"weight_norm": "parametrizations.weight.original1"}.get(kind, "weight")
    flops = fxsplit._flops.layer_flops(net)  # type: ignore[attr-defined]
    assert flops[f"heads.1.1.lin.{path}"] == 2 * 64


@every_kind
def test_saving_and_loading(kind: str, tmp_path: Path) -> None:
    net = fxsplit.split(trace(layers(kind), X), "1")
    net.train()(X)
    fxsplit.save(net, tmp_path / "net")
    again = fxsplit.load(tmp_path / "net", layers(kind))
    assert_same(again.state_dict(), net.state_dict())
    assert_same(again.eval()(X), net.eval()(X))
    fxsplit.save(again, tmp_path / "again")


def test_masks_go_where_they_mean_zeros(tmp_path: Path) -> None:
    net = fxsplit.split(trace(layers("weight_norm"), X), "1", heads=2)
    with pytest.warns(sparsity.SparsityWarning, match=r"3 weights stay dense.*'trunk.1.weight', 'heads.0.3.weight'"):
        masks = sparsity.sparsify(net, 0.5)
    assert list(masks) == ["trunk.0.weight", "heads.0.4.weight", "heads.1.4.weight"]
    assert fxsplit.summary(net).total.nonzeros == sum(p.numel() for p in net.parameters()) - masks.total // 2
    fxsplit.save(net, tmp_path / "net")
    again = fxsplit.load(tmp_path / "net", layers("weight_norm"))
    assert_same(again.state_dict(), net.state_dict())
    assert_same(again.eval()(X), net.eval()(X))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "kind", [kind for kind in WRAPS if kind != "orthogonal"]
)  # torch has it in float32 and float64
def test_casting(kind: str, dtype: torch.dtype) -> None:
    model = layers(kind).eval()
    traced = trace(model, X)
    net = copy.deepcopy(fxsplit.split(traced, "1", init="copy")).to(dtype)
    traced = copy.deepcopy(traced).to(dtype)
    model.to(dtype)
    x = torch.randn(3, 8, dtype=dtype)
    assert_same(traced(x), model(x))
    for output in net.head_outputs(x):
        assert_same(output, model(x))


# Fresh heads.


def stored(model: nn.Module, path: str) -> dict[str, Tensor]:
    layer = model.get_submodule(path)
    return {**dict(layer.named_parameters()), **dict(layer.named_buffers())}


@every_kind
def test_fresh_heads_are_drawn_as_the_layer_draws_itself(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), WRAPS[kind](nn.Linear(64, 64)))
    net = fxsplit.split(trace(model, X), "0", heads=2)
    first, second, source = stored(net, "heads.0.1"), stored(net, "heads.1.1"), stored(model, "1")
    assert net.report.not_redrawn == {}
    for name in source:
        if (kind, name) == ("orthogonal", "parametrizations.weight.original"):
            continue  # minus the identity, whatever the weight is, which is in the buffer
        assert not torch.equal(first[name], second[name])
        assert not torch.equal(first[name], source[name])
        assert net.report.init[f"1.{name}"] == "reset_parameters"
        assert float(first[name].detach().std()) == pytest.approx(float(source[name].detach().std()), rel=0.3)


@pytest.mark.parametrize("kind", ["weight_norm", "old weight_norm"])
@pytest.mark.parametrize("std", [None, 0.01])
def test_magnitudes_fit_directions(kind: str, std: float | None) -> None:
    layer = nn.Linear(32, 48)
    if std is not None:
        nn.init.normal_(layer.weight, 0, std)
    model = nn.Sequential(nn.Linear(8, 32), WRAPS[kind](layer))
    for head in fxsplit.split(trace(model, X), "0", heads=2).heads:
        magnitude, direction = (head.get_submodule("1").get_parameter(name) for name in parts(kind))
        assert_same(magnitude.detach(), direction.detach().norm(dim=1, keepdim=True))
        assert not torch.equal(direction, model[1].get_parameter(parts(kind)[1]))


def test_magnitudes_that_are_set_apart_stay_so() -> None:
    """The last layer of DINO: directions of unit length, whatever the parameters."""
    head = nn.Linear(32, 48, bias=False)
    directions = nn.init.trunc_normal_(head.weight, std=0.02).detach()
    parametrizations.weight_norm(head).get_parameter("parametrizations.weight.original0").data.fill_(1)
    net = fxsplit.split(trace(nn.Sequential(nn.Linear(8, 32), head), X), "0", heads=2)
    drawn = [stored(one, "1") for one in net.heads]
    for one in drawn:
        assert bool((one["parametrizations.weight.original0"] == 1).all())
    first, second = (one["parametrizations.weight.original1"].detach() for one in drawn)
    assert not torch.equal(first, second)
    assert_same(first.flatten().sort().values, directions.flatten().sort().values)


@pytest.mark.parametrize("kind", ["spectral_norm", "old spectral_norm"])
@pytest.mark.parametrize("std", [None, 0.01])
def test_vectors_fit_matrices(kind: str, std: float | None) -> None:
    layer = nn.Linear(32, 48)
    if std is not None:
        nn.init.normal_(layer.weight, 0, std)
    model = nn.Sequential(nn.Linear(8, 32), WRAPS[kind](layer))
    for head in fxsplit.split(trace(model, X), "0", heads=2).heads:
        made = head.eval().get_submodule("1")
        made(torch.zeros(1, 32))
        assert float(torch.linalg.matrix_norm(made.weight.detach(), 2)) == pytest.approx(1, abs=0.15)  # type: ignore[operator,union-attr]


def test_fresh_heads_on_the_meta_device() -> None:
    model = layers("weight_norm").to("meta")
    net = fxsplit.split(trace(model, X.to("meta")), "1")
    assert net(X.to("meta")).shape == (2, 3)


def test_onnx_holds_plain_weights(tmp_path: Path) -> None:
    for model, cut in ((layers("weight_norm"), "1"), (reading("weight_norm"), "2")):
        net = fxsplit.split(trace(model, X), cut, heads=2)
        error = fxsplit.export_onnx(net, tmp_path / f"{cut}.onnx", X).error
        assert error is not None
        assert error < 1e-5
