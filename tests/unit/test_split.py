"""What a split model computes, owns and keeps."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxsplit


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.norm(self.conv(x)).relu())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 1)
        self.blocks = nn.Sequential(Block(4), Block(4), Block(4))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


X = torch.linspace(-1, 1, 5 * 16).view(5, 1, 4, 4)


def seeded(function: Any, *args: Any) -> Any:
    torch.manual_seed(3)
    return function(*args)


@pytest.fixture
def model() -> Net:
    return Net()


def make(model: nn.Module, at: Any = "blocks.0", **options: Any) -> Any:
    return fxsplit.split(fxsplit.trace(model, X), at, **{"init": "copy", **options})


@pytest.mark.parametrize("at", [0, "stem", "blocks.0", "blocks"])
@pytest.mark.parametrize("training", [False, True])
def test_one_copied_head_is_the_model_bit_for_bit(model: Net, at: Any, training: bool) -> None:
    model.train(training)
    net = make(model, at, heads=1)
    expected = seeded(model, X)
    actual = seeded(net, X)
    assert torch.equal(actual, expected)
    actual.sum().backward()
    expected.sum().backward()
    originals = dict(model.named_parameters())
    for name, parameter in net.named_parameters():
        original: Any = originals[name.removeprefix("trunk.").removeprefix("heads.0.")]
        assert torch.equal(parameter.grad, original.grad)
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name.removeprefix("trunk.").removeprefix("heads.0.")))


def test_copied_heads_are_the_model_and_the_vote_is_within_rounding(model: Net) -> None:
    model.eval()
    net = make(model, heads=5)
    expected = model(X)
    outputs = net.head_outputs(X)
    assert len(outputs) == net.num_heads == 5
    assert all(torch.equal(output, expected) for output in outputs)
    torch.testing.assert_close(net(X), expected, rtol=3e-7, atol=1e-7)


def test_the_result_is_the_mean_of_different_heads(model: Net) -> None:
    model.eval()
    net = make(model, heads=2)
    with torch.no_grad():
        net.heads[1].fc.weight.mul_(-1)
        net.heads[1].fc.bias.mul_(-1)
    torch.testing.assert_close(net(X), torch.zeros(5, 3))
    one, two = net.head_outputs(X)
    assert torch.equal(one, -two)


def test_structure_and_paths(model: Net) -> None:
    net = make(model, heads=2)
    assert [(n.op, n.target) for n in net.graph.nodes if n.op in ("placeholder", "call_module", "output")] == [
        ("placeholder", "x"),
        ("call_module", "trunk"),
        ("call_module", "heads.0"),
        ("call_module", "heads.1"),
        ("call_module", "vote"),
        ("output", "output"),
    ]
    assert torch.fx.GraphModule in type(net).__mro__
    assert type(net.heads) is nn.ModuleList
    assert isinstance(net.get_submodule("trunk.blocks.0.conv"), nn.Conv2d)
    assert isinstance(net.get_submodule("heads.1.blocks.2.norm"), nn.BatchNorm2d)
    assert net.origin["heads.1.blocks.2.norm"] == "blocks.2.norm"
    assert net.origin["trunk.stem"] == "stem"
    assert {type(net.get_submodule(new)) is type(model.get_submodule(old)) for new, old in net.origin.items()} == {True}
    parts: Any = (net.trunk, *net.heads)
    nodes = [n for part in parts for n in part.graph.nodes if n.op == "call_module"]
    assert all({"path", "shape", "dtype", "flops", "modules"} <= n.meta.keys() for n in nodes)


def test_parameters_add_up(model: Net) -> None:
    net = make(model, heads=4)
    cut = net.cut
    block = 4 * 4 * 9 + 4 + 4 + 4
    assert (cut.params_before, cut.params_after) == (8 + block, 2 * block + 15)
    assert sum(p.numel() for p in net.parameters()) == cut.params_before + 4 * cut.params_after


def test_nothing_is_shared_with_the_model_or_between_heads(model: Net) -> None:
    net = make(model)
    storages = [
        t.untyped_storage().data_ptr()
        for t in (*net.parameters(), *net.buffers(), *model.parameters(), *model.buffers())
    ]
    assert len(storages) == len(set(storages))


def test_gradients_stay_in_their_head(model: Net) -> None:
    net = make(model)
    net.head_outputs(X)[1].sum().backward()
    assert all(p.grad is not None for p in (*net.trunk.parameters(), *net.heads[1].parameters()))
    assert all(p.grad is None for index in (0, 2) for p in net.heads[index].parameters())


def test_batch_norm_statistics_are_updated_once_in_the_trunk_and_per_head(model: Net) -> None:
    net = make(model.train())
    net(X)
    assert net.trunk.blocks._modules["0"].norm.num_batches_tracked == 1
    for head in net.heads:
        assert head.blocks._modules["1"].norm.num_batches_tracked == 1
    # Dropout differs, so the inputs of the last block's norm do too.
    means = [head.blocks._modules["2"].norm.running_mean for head in net.heads]
    assert not torch.equal(means[0], means[1])
    assert model.get_buffer("blocks.0.norm.num_batches_tracked") == 0


def test_fresh_heads_differ_and_the_trunk_is_kept(model: Net) -> None:
    state = torch.get_rng_state()
    net = make(model, init="fresh", seed=1)
    assert torch.equal(state, torch.get_rng_state())
    weights = [model.fc.weight, *(head.fc.weight for head in net.heads)]
    assert len({tuple(w.flatten().tolist()) for w in weights}) == 4
    assert torch.equal(net.trunk.stem.weight, model.stem.weight)
    assert torch.equal(make(model, init="fresh", seed=1).heads[2].fc.weight, net.heads[2].fc.weight)
    assert not torch.equal(make(model, init="fresh", seed=2).heads[2].fc.weight, net.heads[2].fc.weight)
    assert set(net.report.init) == {
        n
        for n, _ in (*model.named_parameters(), *model.named_buffers())
        if n.startswith(("blocks.1", "blocks.2", "fc"))
    }
    assert make(model).report.init == {}


def test_heads_from_a_factory(model: Net) -> None:
    made: list[Net] = []

    def factory() -> Net:
        made.append(Net())
        return made[-1]

    net = make(model, init=factory, heads=2)
    weights = [other.fc.weight for other in made]
    assert any(torch.equal(net.heads[0].fc.weight, weight) for weight in weights)
    assert not torch.equal(net.heads[0].fc.weight, net.heads[1].fc.weight)


def test_flags_are_kept(model: Net) -> None:
    model.eval()
    model.blocks[1].train()
    model.fc.weight.requires_grad_(False)
    for init in ("copy", "fresh"):
        net = make(model, init=init)
        for part in (net, copy.deepcopy(net)):
            assert not part.training
            assert not part.heads[0].training
            assert part.heads[0].blocks._modules["1"].training
            assert part.heads[0].blocks._modules["1"].drop.training
            assert not part.heads[0].blocks._modules["2"].drop.training
            assert not part.trunk.stem.training
            assert not part.heads[2].fc.weight.requires_grad
            assert part.heads[2].fc.bias.requires_grad
    net.train()
    assert all(module.training for module in net.modules())


def test_deepcopy_and_state_dict(model: Net) -> None:
    net = make(model.eval(), init="fresh")
    twin = copy.deepcopy(net)
    assert fxsplit.SplitModel in type(twin).__mro__
    assert torch.equal(twin(X), net(X))
    assert all(torch.equal(a, b) for a, b in zip(twin.head_outputs(X), net.head_outputs(X), strict=True))
    assert twin.cut == net.cut
    with torch.no_grad():
        twin.heads[0].fc.bias.add_(1)
    assert not torch.equal(twin.head_outputs(X)[0], net.head_outputs(X)[0])
    assert twin.state_dict().keys() == net.state_dict().keys()
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(X), net(X))
    assert "SplitModel" in repr(twin)


def test_weights_can_be_pickled_but_the_network_points_to_save(model: Net, tmp_path: Path) -> None:
    net = make(model.eval(), init="fresh")
    torch.save(net.state_dict(), tmp_path / "weights")
    other = make(model, init="fresh", seed=9)
    other.load_state_dict(torch.load(tmp_path / "weights"))
    assert torch.equal(other(X), net(X))
    with pytest.raises(fxsplit.SplitError, match=r"fxsplit.save"):
        torch.save(net, tmp_path / "net")


def test_dtype_can_be_changed(model: Net) -> None:
    net = make(model.eval()).double()
    reference = copy.deepcopy(model).double()
    assert all(torch.equal(output, reference(X.double())) for output in net.head_outputs(X.double()))


@pytest.mark.parametrize("vote", ["mean", "prob"])
def test_compiles_without_graph_breaks(vote: str) -> None:
    net = fxsplit.split(
        fxsplit.trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), X[:, 0, 0]), "1", vote=vote
    )
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X[:, 0, 0]), net(X[:, 0, 0]))
    outputs = torch.compile(net.head_outputs, fullgraph=True, backend="aot_eager")(X[:, 0, 0])
    for actual, expected in zip(outputs, net.head_outputs(X[:, 0, 0]), strict=True):
        torch.testing.assert_close(actual, expected)


class Pair(NamedTuple):
    scores: Tensor
    features: Tensor


@dataclass
class Result:
    scores: Tensor
    features: Tensor
    nothing: None = None


@pytest.mark.parametrize(
    "pack",
    [
        lambda scores, features: (scores, [features, None]),
        lambda scores, features: {"scores": scores, "more": {"features": features, "one": 1}},
        lambda scores, features: OrderedDict(scores=scores, features=features),
        Pair,
        Result,
    ],
)
def test_any_output_structure_comes_back_and_trunk_outputs_pass_through(pack: Any) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Any:
            features = self.one(x)
            return pack(self.two(features), features)

    model, x = Packed(), torch.randn(5, 4)
    net = fxsplit.split(fxsplit.trace(model, x), "one", heads=3, init="copy")
    expected = model(x)
    leaf = vars if pack is Result else pytree.tree_leaves
    for output in (net(x), *net.head_outputs(x)):
        assert type(output) is type(expected)
        found, wanted = (pytree.tree_leaves(leaf(value)) for value in (output, expected))
        assert len(found) == len(wanted)
        for actual, value in zip(found, wanted, strict=True):
            assert type(actual) is type(value)
            torch.testing.assert_close(actual, value)
    assert len(net.report.passed) == 1
    assert all(tensor.requires_grad for tensor in found if isinstance(tensor, Tensor))


def test_arguments_by_position_or_name_and_defaults() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.two(self.one(x)) * scale

    model, x, scale = Scaled(), torch.randn(5, 4), torch.randn(5, 1)
    net = fxsplit.split(fxsplit.trace(model, (x, scale)), "one", heads=1, init="copy")
    assert torch.equal(net(x, scale=scale), model(x, scale))
    assert torch.equal(net.head_outputs(scale=scale, x=x)[0], model(x, scale))
    assert [c.name for c in net.report.side_inputs] == ["scale"]
    trunk = next(n for n in net.graph.nodes if n.target == "trunk")
    assert [n.name for n in trunk.all_input_nodes] == ["x"]


def test_integer_outputs_are_the_first_heads() -> None:
    class Classified(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            scores = self.two(self.one(x))
            return scores, scores.argmax(-1)

    net = fxsplit.split(fxsplit.trace(Classified(), torch.randn(5, 4)), "one")
    x = torch.randn(7, 4)
    assert torch.equal(net(x)[1], net.head_outputs(x)[0][1])
    assert net(x)[1].dtype == torch.int64


def test_the_spec_is_plain_data(model: Net) -> None:
    net = make(model, "blocks.1", heads=2, vote="prob", seed=5, share=("fc",))
    spec = json.loads(json.dumps(net.meta["fxsplit_spec"]))
    assert {key: spec[key] for key in ("split", "heads", "init", "vote", "share", "tied", "seed")} == {
        "split": "blocks.1",
        "heads": 2,
        "init": "copy",
        "vote": "prob",
        "share": ["fc"],
        "tied": "untie",
        "seed": 5,
    }
    assert spec["versions"]["torch"] == torch.__version__
    assert net.cut.node in spec["nodes"]


def test_report_prints(model: Net) -> None:
    text = str(make(model, init="fresh", share=("fc",)).report)
    assert "shared by all heads: fc" in text
    assert "reset_parameters" in text
