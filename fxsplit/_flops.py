"""FLOPs per layer of a traced graph or of a split model, from the shapes its nodes recorded.

FLOPs are 2 x MAC of one forward pass for one sample, counted densely. What every element of a weight costs is the
same, so the FLOPs under a mask are the dense FLOPs times the density of that mask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import fx, nn
from torch.nn.utils.parametrize import ParametrizationList

from fxsplit._params import parameter_names, raw_parameter, stored_parameter

Shape = tuple[int, ...]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUNCTIONS = {"linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}


@dataclass(frozen=True)
class NodeCost:
    """FLOPs of one node over the recorded batch: per weight path, and what no weight accounts for (attention)."""

    weights: Mapping[str, int]
    other: int


def layer_flops(graph: fx.GraphModule) -> dict[str, int]:
    """Dense FLOPs (2 x MAC) per sample of every convolution and linear weight, summed over its calls.

    Counted are Conv1d/2d/3d, their transposes, Linear (and subclasses), transformers' Conv1D, the functional forms
    with a weight of the graph, and the projections of MultiheadAttention. Biases are not counted.

    Args:
        graph: A traced graph or a split model.

    Returns:
        ``{weight path: FLOPs}``, e.g. ``{'heads.0.layer4.2.conv1.weight': 102_760_448, ...}``, in graph order. A tied
        or shared weight appears once, under its first name.

    Example:
        >>> import torch, fxsplit
        >>> layer_flops(fxsplit.trace(torch.nn.Sequential(torch.nn.Linear(3, 5)), torch.zeros(2, 3)))
        {'0.weight': 30}
    """
    total: Counter[str] = Counter()
    batch = recorded_batch(graph)
    for _, _, cost in node_costs(graph):
        total.update(cost.weights)
    return {path: round(flops / batch) for path, flops in total.items()}


def other_flops(graph: fx.GraphModule) -> int:
    """FLOPs per sample that belong to no weight: attention products, products of activations, opaque leaves.

    With `layer_flops` it is the whole forward pass; masks make only the layers cheaper.

    Args:
        graph: A traced graph or a split model.

    Example:
        >>> import torch, fxsplit
        >>> class Gram(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x @ x.mT
        >>> other_flops(fxsplit.trace(Gram(), torch.zeros(2, 3, 5)))
        90
    """
    return round(sum(cost.other for _, _, cost in node_costs(graph)) / recorded_batch(graph))


def node_costs(graph: fx.GraphModule) -> Iterator[tuple[str, fx.Node, NodeCost]]:
    """Every node that computes something: ``(path of the GraphModule that holds it, node, its cost)``, in graph order.

    Nested GraphModules (trunk, heads) are entered. Costs are over the whole recorded batch.
    """
    names = parameter_names(graph)
    for prefix, owner, node in walk(graph):
        weights: Counter[str] = Counter()
        for parameter, macs in _weighted_calls(owner, node):
            weights[names[id(parameter)]] += 2 * macs
        recorded = node.meta.get("flops", 0)
        # The registry of torch.utils.flop_counter knows neither the CPU's fused attention nor the fused encoder.
        other = max(recorded - sum(weights.values()), _attention_flops(owner, node), 0)
        yield prefix, node, NodeCost(dict(weights), other)


def walk(graph: fx.GraphModule, prefix: str = "") -> Iterator[tuple[str, fx.GraphModule, fx.Node]]:
    """Nodes that compute, with the path and the GraphModule that holds them; nested GraphModules are entered."""
    for node in graph.graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, fx.GraphModule):
            yield from walk(module, f"{prefix}.{node.target}" if prefix else str(node.target))
        else:
            yield prefix, graph, node


def recorded_batch(graph: fx.GraphModule) -> int:
    """Batch size of the recording whose shapes the nodes carry: of the graph or of a GraphModule within it."""
    for module in graph.modules():
        batch = module.meta.get("batch") if isinstance(module, fx.GraphModule) else None
        if batch:
            return int(batch)
    return 1


def _weighted_calls(owner: fx.GraphModule, node: fx.Node) -> Iterator[tuple[nn.Parameter, int]]:
    """``(parameter, multiply-accumulates with it)`` for the weights a node applies."""
    if node.op == "call_module":
        module = owner.get_submodule(str(node.target))
        if isinstance(module, nn.MultiheadAttention):
            yield from _attention_projections(module, node)
            return
        if isinstance(module, nn.TransformerEncoderLayer):
            yield from _encoder_weights(module, node)
            return
        weight = raw_parameter(module, "weight")
        positions = None if weight is None else _module_positions(module, node)
    elif node.op == "call_function" and getattr(node.target, "__name__", "") in _FUNCTIONS:
        weight = _attribute(owner, _argument(node, 1, "weight"))
        transposed = node.target.__name__.startswith("conv_transpose")  # type: ignore[union-attr]
        positions = None if weight is None else _positions(node, weight.shape[0], transposed)
    else:
        return
    if weight is not None and positions is not None:
        yield weight, positions * weight.numel()


def _module_positions(module: nn.Module, node: fx.Node) -> int | None:
    """How many positions (samples x pixels or tokens) every element of the module's weight is multiplied at."""
    if isinstance(module, _TRANSPOSED):
        return _positions(node, module.in_channels, transposed=True)
    if isinstance(module, _CONVS):
        return _positions(node, module.out_channels)
    if isinstance(module, nn.Linear):
        return _positions(node, module.out_features)
    # transformers' Conv1D is a linear layer with a transposed weight; it must not become a dependency.
    if any(cls.__name__ == "Conv1D" and cls.__module__.startswith("transformers.") for cls in type(module).__mro__):
        return _positions(node, module.nf)  # type: ignore[arg-type]
    return None


def _positions(node: fx.Node, channels: int, transposed: bool = False) -> int | None:
    shape = _shape(_argument(node, 0, "input") if transposed else node)
    return None if shape is None else prod(shape) // channels


def _attention_projections(module: nn.MultiheadAttention, node: fx.Node) -> Iterator[tuple[nn.Parameter, int]]:
    shapes = [_shape(_argument(node, i, name)) for i, name in enumerate(("query", "key", "value"))]
    if any(shape is None for shape in shapes):
        return
    query, key, value = (prod(shape[:-1]) for shape in shapes if shape is not None)
    packed = raw_parameter(module, "in_proj_weight")
    if packed is not None:
        # A third of the packed weight meets the query, another the key, another the value.
        yield packed, (query + key + value) * packed.numel() // 3
    for name, positions in (("q_proj_weight", query), ("k_proj_weight", key), ("v_proj_weight", value)):
        separate = raw_parameter(module, name)
        if separate is not None:
            yield separate, positions * separate.numel()
    out = raw_parameter(module.out_proj, "weight")
    if out is not None:
        yield out, query * out.numel()


def _encoder_weights(module: nn.TransformerEncoderLayer, node: fx.Node) -> Iterator[tuple[nn.Parameter, int]]:
    """A layer of nn.TransformerEncoder applies each of its weights to every token of its input."""
    shape = _shape(_argument(node, 0, "src"))
    attention = module.self_attn
    weights = [(attention, "in_proj_weight"), (attention.out_proj, "weight")]
    for owner, name in [*weights, (module.linear1, "weight"), (module.linear2, "weight")]:
        weight = raw_parameter(owner, name)
        if shape is not None and weight is not None:
            yield weight, prod(shape[:-1]) * weight.numel()


def _attention_flops(owner: fx.GraphModule, node: fx.Node) -> int:
    """The two products softmax(q k^T) v: 2 x MAC = 2 L S (E + E_v) per head and sample, whatever the mask."""
    if node.op == "call_module":
        module = owner.get_submodule(str(node.target))
        if isinstance(module, nn.TransformerEncoderLayer):
            query = key = _shape(_argument(node, 0, "src"))
            module = module.self_attn
        elif isinstance(module, nn.MultiheadAttention):
            query, key = _shape(_argument(node, 0, "query")), _shape(_argument(node, 1, "key"))
        else:
            return 0
        if query is None or key is None:
            return 0
        length = 0 if len(key) == 2 else 1 if module.batch_first else 0
        return 4 * prod(query) * key[length]
    if getattr(node.target, "__name__", "") != "scaled_dot_product_attention":
        return 0
    query, key, value = (_shape(_argument(node, i, name)) for i, name in enumerate(("query", "key", "value")))
    if query is None or key is None or value is None:
        return 0
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _argument(node: fx.Node, index: int, name: str) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name)


def _shape(node: Any) -> Shape | None:
    return node.meta.get("shape") if isinstance(node, fx.Node) else None


def _attribute(owner: fx.GraphModule, node: Any) -> nn.Parameter | None:
    if not isinstance(node, fx.Node):
        return None
    if node.op == "call_module" and isinstance(chain := owner.get_submodule(str(node.target)), ParametrizationList):
        return stored_parameter(chain)
    if node.op != "get_attr":
        return None
    path, _, name = str(node.target).rpartition(".")
    return raw_parameter(owner.get_submodule(path), name)
