"""The graph that tracing writes: placeholders, paths, shapes, FLOPs, and the structure of what it returns."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn
from transformers.modeling_outputs import BaseModelOutput

from fxsplit._trace import trace
from tests.checks import assert_same


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x)) + x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(3, 5)

    def forward(self, image: Tensor, scale: Tensor | None = None, *, power: float = 1.0) -> Tensor:
        x = self.blocks(image).mean((2, 3))
        x = x if scale is None else x * scale
        return self.head(x) ** power


def nodes(traced: fx.GraphModule, **meta: Any) -> list[fx.Node]:
    return [n for n in traced.graph.nodes if n.op != "output" and all(n.meta[k] == v for k, v in meta.items())]


def node(traced: fx.GraphModule, target: Any) -> fx.Node:
    (found,) = [n for n in traced.graph.nodes if n.target == target]
    return found


def test_leaves_are_called_under_their_original_paths_and_shared() -> None:
    net = Net()
    traced = trace(net, torch.randn(2, 3, 4, 4))
    calls = [n.target for n in traced.graph.nodes if n.op == "call_module"]
    assert calls == ["blocks.0.conv", "blocks.0.act", "blocks.1.conv", "blocks.1.act", "head"]
    assert traced.get_submodule("blocks.1.conv") is net.blocks[1].conv
    assert isinstance(traced, fx.GraphModule)
    assert traced.source is net


def test_every_node_knows_the_modules_around_it() -> None:
    traced = trace(Net(), torch.randn(2, 3, 4, 4))
    conv = node(traced, "blocks.1.conv")
    assert conv.meta["path"] == "blocks.1.conv"
    assert conv.meta["modules"] == ("blocks", "blocks.1", "blocks.1.conv")
    (add,) = nodes(traced, path="blocks.1")
    assert add.meta["modules"] == ("blocks", "blocks.1")
    assert [n.meta["path"] for n in traced.graph.nodes if n.name == "mean"] == [""]
    positions = [i for i, n in enumerate(traced.graph.nodes) if "blocks.0" in n.meta.get("modules", ())]
    assert positions == list(range(positions[0], positions[0] + 3))


def test_shapes_dtypes_and_flops_are_those_of_the_base_batch() -> None:
    traced = trace(Net(), torch.randn(7, 3, 4, 4))
    batch = traced.meta["batch"]
    conv, head, image = node(traced, "blocks.0.conv"), node(traced, "head"), node(traced, "image")
    assert conv.meta["shape"] == (batch, 3, 4, 4)
    assert conv.meta["dtype"] is torch.float32
    assert conv.meta["flops"] == 2 * batch * 16 * 3 * 3 * 9
    assert head.meta["flops"] == 2 * batch * 3 * 5
    assert image.meta["shape"] == (batch, 3, 4, 4)
    assert sum(n.meta["flops"] for n in nodes(traced)) == 2 * conv.meta["flops"] + head.meta["flops"]


@pytest.mark.parametrize("heads", [3, 1], ids=["", "grouped"])
def test_attention_counts_both_products(heads: int) -> None:
    class Attention(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=heads < 3)

    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, heads, 7, 8), torch.randn(2, heads, 7, 8)
    traced = trace(Attention(), (q, k, v))
    (call,) = [n for n in traced.graph.nodes if n.op == "call_function"]
    assert call.meta["flops"] == 2 * (2 * 3) * (5 * 7 * 8 + 5 * 7 * 8)


def test_placeholders_are_named_like_the_parameters_that_the_example_fills() -> None:
    x, scale = torch.randn(2, 3, 4, 4), torch.rand(2, 3)
    net = Net().eval()
    traced = trace(net, ((x,), {"power": 2.0, "scale": scale}))
    assert [n.target for n in traced.graph.nodes if n.op == "placeholder"] == ["image", "scale"]
    expected = net(x, scale, power=2.0)
    assert_same(traced(x, scale), expected)
    assert_same(traced(scale=scale, image=x), expected)
    assert "argument power = 2.0" in traced.report.specialised
    assert traced.example == ((x,), {"power": 2.0, "scale": scale})


class Variadic(nn.Module):
    def forward(self, *xs: Tensor, **more: Tensor) -> Tensor:
        return xs[0] - xs[1] * more["scale"] + more["shift"]


def test_variadic_arguments() -> None:
    a, b, scale, shift = torch.randn(4, 2, 3).unbind(0)
    traced = trace(Variadic(), ((a, b), {"scale": scale, "shift": shift}))
    assert [n.target for n in traced.graph.nodes if n.op == "placeholder"] == ["xs_0", "xs_1", "scale", "shift"]
    assert_same(traced(a, b, shift=shift, scale=scale), a - b * scale + shift)


@dataclasses.dataclass
class Pair:
    first: Tensor
    second: Tensor | None


class Nested(nn.Module):
    def forward(self, batch: Any, pair: Pair) -> Tensor:
        assert isinstance(pair, Pair)
        return batch["x"] + batch["more"][1] * batch["more"][0] - pair.first


def test_a_container_is_one_placeholder_taken_apart_in_the_graph() -> None:
    def example(batch: int) -> tuple[Any, ...]:
        a, b, c, d = torch.randn(4, batch, 3).unbind(0)
        return {"x": a, "more": [b, c], "name": "n"}, Pair(d, None)

    traced = trace(Nested(), example(2))
    assert [n.target for n in traced.graph.nodes if n.op == "placeholder"] == ["batch", "pair"]
    for batch in (2, 4):
        inputs = example(batch)
        assert_same(traced(*inputs), Nested()(*inputs))


class Point(NamedTuple):
    x: Tensor
    y: Tensor


def returning(kind: str, x: Tensor) -> Any:
    a, b = x + 1, x * 2
    return {
        "tensor": a,
        "tuple": (a, None, 3),
        "list": [a, [b, {"deep": a}]],
        "dict": {"a": a, "name": "x", "size": x.shape[0]},
        "ordered": OrderedDict(out=a, aux=b),
        "namedtuple": Point(a, b),
        "dataclass": Pair(a, None),
        "model output": BaseModelOutput(last_hidden_state=a, hidden_states=(a, b)),  # type: ignore[arg-type]
        "torch's own": torch.max(x, dim=1),
        "the input": x,
        "twice": (a, a),
    }[kind]


class Returns(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        return returning(self.kind, x)


@pytest.mark.parametrize(
    "kind",
    [
        "tensor",
        "tuple",
        "list",
        "dict",
        "ordered",
        "namedtuple",
        "dataclass",
        "model output",
        "torch's own",
        "the input",
        "twice",
    ],
)
def test_outputs_keep_their_type_and_structure(kind: str) -> None:
    net = Returns(kind)
    traced = trace(net, torch.randn(2, 3))
    x = torch.randn(4, 3)
    got, expected = traced(x), net(x)
    assert type(got) is type(expected)
    if kind == "dataclass":
        got, expected = vars(got), vars(expected)
    assert_same(got, expected)


def test_an_output_that_no_graph_can_build_is_none_and_reported() -> None:
    class Cache:
        def __init__(self, keys: Tensor) -> None:
            self.keys = keys

    class Cached(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {"y": x + 1, "cache": Cache(x)}

    traced = trace(Cached(), torch.randn(2, 3))
    assert traced(torch.zeros(1, 3))["cache"] is None
    assert traced.report.dropped == ["output.cache (Cache) cannot be rebuilt by a graph and is returned as None"]


def test_the_report_reads_well() -> None:
    quiet = trace(nn.Linear(3, 2), torch.randn(2, 3)).report
    assert str(quiet) == "trace report: nothing was assumed"
    assert "nothing" in quiet._repr_html_()
    report = trace(Net(), ((torch.randn(2, 3, 4, 4),), {"power": 2.0})).report
    assert str(report).splitlines()[2].strip() == "argument power = 2.0"
    assert "argument power = 2.0" in report._repr_html_()
