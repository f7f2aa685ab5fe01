"""Small changes of a graph module that keep everything else as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from torch import fx, nn

from fxsplit._cuts._flow import Flow
from fxsplit._graph import output_leaves
from fxsplit._split._copying import assemble, copy_values
from fxsplit._split._emission import head_graph, trunk_graph, trunk_inputs
from fxsplit._split._partition import Partition


def assemble_trunk(flow: Flow, parts: Partition) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
    """The trunk on copies of the modules, and its nodes by the nodes that they are copies of."""
    graph = trunk_graph(flow, parts)
    originals = [*trunk_inputs(flow, parts), *parts.trunk]
    copies = [node for node in graph.nodes if node.op != "output"]
    trunk = assemble("Trunk", graph, copy_values(flow.root, parts.trunk, {}), flow.root)
    return trunk, dict(zip(originals, copies, strict=True))


def assemble_head(flow: Flow, parts: Partition) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
    """A head on copies of the modules, and its placeholders by the values that they stand for."""
    graph = head_graph(flow, parts)
    head = assemble("Head", graph, copy_values(flow.root, parts.head, {}), flow.root)
    placeholders = [node for node in head.graph.nodes if node.op == "placeholder"]
    return head, dict(zip((*parts.crossing, *parts.inputs), placeholders, strict=True))


def return_from_heads(flow: Flow, parts: Partition, places: Collection[str]) -> Partition:
    """Let the heads return outputs that the trunk makes, instead of the trunk itself.

    Args:
        flow: Of the graph.
        parts: Its two sides.
        places: Of the outputs.
    """
    order = list(output_leaves(flow.root.graph))
    leaves = {**parts.leaves, **{place: parts.passed[place] for place in places}}
    return dataclasses.replace(
        parts,
        crossing=tuple(dict.fromkeys((*parts.crossing, *(parts.passed[place] for place in places)))),
        leaves=dict(sorted(leaves.items(), key=lambda item: order.index(item[0]))),
        passed={place: node for place, node in parts.passed.items() if place not in places},
    )


def unused_name(owner: nn.Module, name: str) -> str:
    """A name for an attribute of ``owner`` that it doesn't have."""
    while hasattr(owner, name):
        name += "_"
    return name


def call_after(owner: fx.GraphModule, node: fx.Node, target: str, users: Sequence[fx.Node] | None = None) -> fx.Node:
    """Let a module take the value of ``node``, and the users of that take the module's; ``owner`` needs recompiling.

    Args:
        owner: Holds the module under ``target``.
        node: Any node of its graph.
        target: Path of the module.
        users: Those that get the new value; None for all.
    """
    with owner.graph.inserting_after(node):
        new = owner.graph.call_module(target, (node,))
    new.meta = dict(node.meta) | {"flops": 0}
    node.replace_all_uses_with(
        new, delete_user_cb=lambda user: user is not new and (users is None or user in users), propagate_meta=False
    )
    return new
