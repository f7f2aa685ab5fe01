"""FLOPs by hand, on graphs written by hand: their nodes carry the metadata that tracing records."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrize

from fxsplit._flops import layer_flops, other_flops
from fxsplit._params import find_masks, parameter_names, plain_name, raw_parameter


def record(module: nn.Module, *inputs: torch.Tensor, batch: int, leaves: tuple[type, ...] = ()) -> fx.GraphModule:
    """A graph with shapes by running it: an independent stand-in for the tracer's metadata, FLOPs left at 0."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, leaves) or super().is_leaf_module(m, module_qualified_name)

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node):
            value = super().run_node(n)
            n.meta["shape"] = tuple(value.shape) if isinstance(value, torch.Tensor) else None
            return value

    graph = fx.GraphModule(module, Tracer().trace(module))
    Shapes(graph).run(*inputs)
    graph.meta["batch"] = batch
    return graph


@pytest.mark.parametrize(
    ("layer", "shape", "flops"),
    [
        (nn.Linear(3, 5), (2, 3), 2 * 15),
        (nn.Linear(3, 5), (2, 7, 3), 2 * 15 * 7),
        (nn.Conv1d(4, 6, 3), (2, 4, 10), 2 * 8 * 6 * 4 * 3),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8), 2 * 16 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, 3, groups=2, bias=False), (2, 4, 5, 5), 2 * 9 * 6 * 2 * 9),
        (nn.Conv3d(1, 2, 2), (2, 1, 3, 3, 3), 2 * 8 * 2 * 8),
        (nn.ConvTranspose2d(3, 5, 2, stride=2), (2, 3, 4, 4), 2 * 16 * 3 * 5 * 4),
    ],
)
def test_layers_cost_what_their_formula_says(layer: nn.Module, shape: tuple[int, ...], flops: int) -> None:
    graph = record(nn.Sequential(layer, nn.ReLU()), torch.zeros(shape), batch=2)
    assert layer_flops(graph) == {"0.weight": flops}
    assert other_flops(graph) == 0


def test_transformers_conv1d_counts_without_being_imported_by_the_library() -> None:
    from transformers.pytorch_utils import Conv1D

    graph = record(nn.Sequential(Conv1D(5, 3)), torch.zeros(2, 7, 3), batch=2, leaves=(Conv1D,))
    assert layer_flops(graph) == {"0.weight": 2 * 15 * 7}


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4)
        self.again.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.first(self.first(x)))


def test_calls_of_a_reused_and_of_a_tied_weight_add_up_under_its_first_name() -> None:
    assert layer_flops(record(Reused(), torch.zeros(1, 4), batch=1)) == {"first.weight": 3 * 2 * 16}


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(6, 4, 3, 3))
        self.up = nn.Parameter(torch.zeros(6, 2, 2, 2))
        self.out = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x, self.kernel, padding=1)
        x = F.conv_transpose2d(input=x, weight=self.up, stride=2)
        return F.linear(x.mean((2, 3)), self.out.weight)


def test_functional_forms_count_for_the_parameter_they_read() -> None:
    flops = layer_flops(record(Functional(), torch.zeros(1, 4, 5, 5), batch=1))
    assert flops == {"kernel": 2 * 25 * 6 * 4 * 9, "up": 2 * 25 * 6 * 2 * 4, "out.weight": 2 * 6}


class Cross(nn.Module):
    def __init__(self, batch_first: bool, kdim: int = 8, vdim: int = 8) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, kdim=kdim, vdim=vdim)

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return self.attention(query, key, key, need_weights=False)[0]


@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_separates_projections_from_products(batch_first: bool) -> None:
    query, key = torch.zeros(2, 5, 8), torch.zeros(2, 7, 8)
    if not batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    graph = record(Cross(batch_first), query, key, batch=2)
    assert layer_flops(graph) == {
        "attention.in_proj_weight": 2 * 64 * (5 + 7 + 7),
        "attention.out_proj.weight": 2 * 64 * 5,
    }
    assert other_flops(graph) == 2 * 2 * 5 * 7 * 8


def test_multihead_attention_with_other_key_sizes_has_three_projections() -> None:
    graph = record(Cross(True, kdim=6, vdim=6), torch.zeros(1, 5, 8), torch.zeros(1, 7, 6), batch=1)
    assert layer_flops(graph) == {
        "attention.q_proj_weight": 2 * 5 * 64,
        "attention.k_proj_weight": 2 * 7 * 48,
        "attention.v_proj_weight": 2 * 7 * 48,
        "attention.out_proj.weight": 2 * 5 * 64,
    }


class Products(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v)


def test_fused_attention_counts_its_two_products() -> None:
    q, k, v = torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 7, 8), torch.zeros(2, 3, 7, 4)
    graph = record(Products(), q, k, v, batch=2)
    assert layer_flops(graph) == {}
    assert other_flops(graph) == 3 * 2 * (5 * 7 * 8 + 5 * 7 * 4)


class Opaque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_what_an_opaque_leaf_recorded_is_kept_apart() -> None:
    graph = record(nn.Sequential(Opaque(), nn.Linear(2, 3)), torch.zeros(4, 2), batch=4, leaves=(Opaque,))
    for node in graph.graph.nodes:
        node.meta["flops"] = {"0": 4 * 2 * 4, "1": 4 * 2 * 6}.get(str(node.target), 0)
    assert layer_flops(graph) == {"1.weight": 12}
    assert other_flops(graph) == 8


def test_nested_graphs_are_entered_and_named_by_their_full_path() -> None:
    trunk = record(nn.Sequential(nn.Linear(2, 3)), torch.zeros(2, 2), batch=2)
    heads = nn.ModuleList(record(nn.Sequential(nn.Linear(3, 4)), torch.zeros(2, 3), batch=2) for _ in range(2))
    graph = fx.Graph()
    crossing = graph.call_module("trunk", (graph.placeholder("x"),))
    graph.output((graph.call_module("heads.0", (crossing,)), graph.call_module("heads.1", (crossing,))))
    net = fx.GraphModule(nn.ModuleDict({"trunk": trunk, "heads": heads}), graph)
    assert layer_flops(net) == {"trunk.0.weight": 12, "heads.0.0.weight": 24, "heads.1.0.weight": 24}


class Masked(nn.Module):
    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.get_buffer("mask")


def test_parametrized_weights_keep_their_names_and_show_their_masks() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    graph = record(model, torch.zeros(1, 3), batch=1)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    parametrize.register_parametrization(graph.get_submodule("0"), "weight", Masked(mask))
    assert layer_flops(graph) == {"0.weight": 12, "2.weight": 8}
    assert set(parameter_names(graph).values()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert list(find_masks(graph)) == ["0.weight"]
    assert find_masks(graph)["0.weight"] is mask


def test_only_bool_masks_count_as_masks() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    parametrize.register_parametrization(model[0], "weight", Masked(torch.ones(2, 3)))
    assert find_masks(model) == {}


def test_plain_names() -> None:
    assert plain_name("a.b.parametrizations.weight.original") == "a.b.weight"
    assert plain_name("parametrizations.weight.original") == "weight"
    assert plain_name("parametrizations.weight.original0") == "parametrizations.weight.original0"
    assert plain_name("a.weight") == "a.weight"
    assert raw_parameter(nn.ReLU(), "weight") is None
