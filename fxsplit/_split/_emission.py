"""Writes the graphs of a split model: trunk, head, the whole, and the variant that returns every head's output."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from torch import fx

from fxsplit._cuts._flow import Flow
from fxsplit._split._partition import Partition

_NO_META: dict[str, Any] = {"path": "", "modules": (), "shape": None, "dtype": None, "flops": 0}


def trunk_inputs(flow: Flow, parts: Partition) -> list[fx.Node]:
    """Arguments of the model that the trunk needs, in their order."""
    read = {value for node in parts.trunk for value in flow.inputs[node]}
    return [n for n in flow.nodes if n.op == "placeholder" and (n in read or n in parts.crossing)]


def trunk_outputs(parts: Partition) -> list[fx.Node]:
    """What the trunk returns: the crossing values, then what goes straight to the model's output."""
    passed = [n for n in parts.passed.values() if n.op != "placeholder"]
    return list(dict.fromkeys((*parts.crossing, *passed)))


def trunk_graph(flow: Flow, parts: Partition) -> fx.Graph:
    """The graph of the trunk; a single output is returned bare, several as a tuple."""
    return _region(flow, trunk_inputs(flow, parts), parts.trunk, trunk_outputs(parts), (), bare=True)


def head_graph(flow: Flow, parts: Partition) -> fx.Graph:
    """The graph of one head: crossing values and direct inputs to the tuple of its output leaves."""
    inputs = (*parts.crossing, *parts.inputs)
    return _region(flow, inputs, parts.head, list(parts.leaves.values()), parts.cloned, bare=False)


def _region(
    flow: Flow,
    inputs: Iterable[fx.Node],
    nodes: Iterable[fx.Node],
    results: Sequence[fx.Node],
    cloned: Collection[fx.Node],
    bare: bool,
) -> fx.Graph:
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        new[node] = graph.placeholder(node.name)
        new[node].meta = dict(node.meta)
    for node in [n for n in new if n in cloned]:
        new[node] = graph.call_method("clone", (new[node],))
        new[node].meta = dict(node.meta) | {"flops": 0}
    for node in nodes:
        new[node] = graph.node_copy(node, lambda value, reader=node: new[flow.current(value, reader)])
    values = tuple(new[node] for node in results)
    graph.output(values[0] if bare and len(values) == 1 else values)
    return graph


def whole_graph(flow: Flow, parts: Partition, heads: int) -> fx.Graph:
    """The graph of the split model: every leaf is voted over the heads."""

    def finish(graph: fx.Graph, new: dict[fx.Node, fx.Node], outputs: list[fx.Node]) -> Any:
        voted = _call(graph, "vote", outputs)
        return _rebuild(flow, graph, new | _items(graph, voted, list(parts.leaves.values()), False))

    return _compose(flow, parts, heads, finish)


def head_outputs_graph(flow: Flow, parts: Partition, heads: int) -> fx.Graph:
    """The graph that returns a list with every head's output in the original structure."""

    def finish(graph: fx.Graph, new: dict[fx.Node, fx.Node], outputs: list[fx.Node]) -> Any:
        leaves = list(parts.leaves.values())
        return [_rebuild(flow, graph, new | _items(graph, output, leaves, False)) for output in outputs]

    return _compose(flow, parts, heads, finish)


def _compose(
    flow: Flow, parts: Partition, heads: int, finish: Callable[[fx.Graph, dict[fx.Node, fx.Node], list[fx.Node]], Any]
) -> fx.Graph:
    graph = fx.Graph()
    new = {n: graph.node_copy(n) for n in flow.nodes if n.op == "placeholder"}
    trunk = _call(graph, "trunk", [new[n] for n in trunk_inputs(flow, parts)])
    results = trunk_outputs(parts)
    outside = dict(new)
    new |= _items(graph, trunk, results, bare=len(results) == 1)
    arguments = [*(new[n] for n in parts.crossing), *(outside[n] for n in parts.inputs)]
    outputs = [_call(graph, f"heads.{index}", arguments) for index in range(heads)]
    graph.output(finish(graph, new, outputs))
    return graph


def _call(graph: fx.Graph, target: str, arguments: Iterable[fx.Node]) -> fx.Node:
    node = graph.call_module(target, tuple(arguments))
    node.meta = dict(_NO_META)
    return node


def _items(graph: fx.Graph, value: fx.Node, contents: Sequence[fx.Node], bare: bool) -> dict[fx.Node, fx.Node]:
    """Take a returned tuple apart; ``contents`` are the original nodes of its items."""
    if bare:
        return {contents[0]: value}
    items: dict[fx.Node, fx.Node] = {}
    for index, node in enumerate(contents):
        if node not in items:
            items[node] = graph.call_function(operator.getitem, (value, index))
            items[node].meta = dict(node.meta) | {"flops": 0}
    return items


def _rebuild(flow: Flow, graph: fx.Graph, values: dict[fx.Node, fx.Node]) -> Any:
    """Copy the nodes that build the returned object; ``values`` are the new nodes of its leaves."""
    new = dict(values)

    def renew(value: fx.Node) -> fx.Node:
        return new[value if value in flow.assembly else flow.current(value, flow.output)]

    for node in flow.nodes:
        if node in flow.assembly:
            new[node] = graph.node_copy(node, renew)
    return fx.map_arg(flow.output.args[0], renew)
