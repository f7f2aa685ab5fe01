"""One flat graph from a graph module of graph modules, with every target as a path from the root."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparsity._select import join

Structure = Any
"""Nodes, or tuples, lists and dicts of them: what a call of an inlined module returned."""


def inline(net: fx.GraphModule) -> fx.Graph:
    """Write the graph of ``net`` and of all graph modules that it calls as one graph.

    The output is a pair: what ``net`` returns, and the list of each head's output if ``net`` keeps a graph for that
    (a split model does), else None. A vote by the mean becomes calls of `mean_of_heads`.
    """
    inlined = _Inlined(net)
    placeholders = [node for node in net.graph.nodes if node.op == "placeholder"]
    bound = {node.name: inlined.graph.node_copy(node) for node in placeholders}
    result = inlined.write(net, "", net.graph, bound)
    # A split model keeps the graph that returns every head's output beside its own.
    split = next(
        (value for value in net.meta.values() if isinstance(getattr(value, "head_outputs", None), fx.Graph)), None
    )
    heads = None if split is None else inlined.write(net, "", split.head_outputs, bound)
    inlined.graph.output((result, heads))
    return inlined.graph


def mean_of_heads(*values: Any) -> Any:
    """The mean of one leaf of the heads' outputs; of what is no floating tensor the first."""
    if len(values) == 1 or not isinstance(values[0], Tensor) or not values[0].is_floating_point():
        return values[0]
    total = values[0] + values[1]
    for value in values[2:]:
        total = total + value
    return total / len(values)


class _Inlined:
    """The graph being written, and what calls of nested graph modules returned, which are made once."""

    def __init__(self, net: fx.GraphModule) -> None:
        self.net = net
        self.graph = fx.Graph()
        self.called: dict[tuple[str, str], Structure] = {}

    def write(self, module: fx.GraphModule, prefix: str, graph: fx.Graph, bound: dict[str, Structure]) -> Structure:
        """Copy the nodes of ``graph``, a graph over ``module`` at ``prefix``, and return what its output stands for."""
        values: dict[fx.Node, Structure] = {}

        def mapped(argument: Any) -> Any:
            return fx.map_arg(argument, lambda node: values[node])

        for node in graph.nodes:
            args, kwargs = mapped(node.args), mapped(node.kwargs)
            if node.op == "output":
                return args[0]
            if node.op == "placeholder":
                values[node] = bound[node.name] if node.name in bound else node.args[0]
            elif node.op == "call_module":
                values[node] = self._call(module, join(prefix, node.target), node, args, kwargs)
            elif node.op == "get_attr":
                values[node] = self._copy(node, join(prefix, node.target), args, kwargs)
            elif node.target is operator.getitem and not isinstance(args[0], fx.Node):
                values[node] = args[0][args[1]]
            else:
                values[node] = self._copy(node, node.target, args, kwargs)
        raise AssertionError("a graph has an output")

    def _call(self, module: fx.GraphModule, path: str, node: fx.Node, args: Any, kwargs: Any) -> Structure:
        callee = module.get_submodule(node.target)  # pyright: ignore
        if _is_mean_vote(callee):
            return _voted(args, lambda leaves: self.graph.call_function(mean_of_heads, tuple(leaves)))
        if not isinstance(callee, fx.GraphModule):
            return self._copy(node, path, args, kwargs)
        # The graph of the heads' outputs calls trunk and heads with the same arguments as the graph of the whole.
        key = (path, repr((args, kwargs)))
        if key not in self.called:
            self.called[key] = self.write(callee, path, callee.graph, _bind(callee, args, kwargs))
        return self.called[key]

    def _copy(self, node: fx.Node, target: Any, args: Any, kwargs: Any) -> fx.Node:
        copied = self.graph.create_node(node.op, target, args, kwargs, name=node.name, type_expr=node.type)
        copied.meta = {"path": node.meta.get("path", "")}
        return copied


def _bind(callee: fx.GraphModule, args: Any, kwargs: Any) -> dict[str, Structure]:
    names = [node.name for node in callee.graph.nodes if node.op == "placeholder"]
    # The signature uses targets, which differ from names where a name is a keyword or taken.
    targets = [str(node.target) for node in callee.graph.nodes if node.op == "placeholder"]
    given = inspect.signature(callee.forward).bind(*args, **kwargs).arguments
    return {name: given[target] for name, target in zip(names, targets, strict=True) if target in given}


def _is_mean_vote(module: nn.Module) -> bool:
    # By name, since this package does not import the one that defines it.
    return type(module).__name__ == "MeanVote" and type(module).__module__.startswith("fxsplit.")


def _voted(heads: Any, vote: Callable[[list[Any]], Any]) -> Structure:
    flat = [pytree.tree_flatten(head, is_leaf=lambda x: isinstance(x, fx.Node)) for head in heads]
    leaves = [vote(list(each)) for each in zip(*(values for values, _ in flat), strict=True)]
    return pytree.tree_unflatten(leaves, flat[0][1])
