"""The layer that makes a model's prediction: the last one with parameters before its output."""

from __future__ import annotations

from torch import fx

from fxsplit._cuts._flow import Flow
from fxsplit._ensemble._layers import features_of, has_parameters, shown
from fxsplit._errors import SplitError
from fxsplit._graph import fetch, is_size, is_tensor, output_leaves

_ONLY = (
    "MIMO needs a model whose output is made by one Linear or convolution without groups, since that layer gives the "
    "predictions of all members."
)


def find_exit(flow: Flow) -> fx.Node:
    """Find the one layer from which the floating tensors that a model returns are computed without any parameters.

    Raises:
        SplitError: There is none, there are several, or it is of another kind.
    """
    leaves = {place: flow.current(node, flow.output) for place, node in output_leaves(flow.root.graph).items()}
    last: dict[fx.Node, str] = {}
    for place, leaf in leaves.items():
        if is_tensor(leaf) and leaf.meta["dtype"].is_floating_point:
            for node in _last_layers(flow, leaf, place):
                last.setdefault(node, place or "output")
    if not last:
        raise SplitError(f"{_ONLY} This model returns no floating tensor that a layer made.")
    if len(last) > 1:
        listed = ", ".join(f"{shown(flow.root, node)} for {place!r}" for node, place in last.items())
        raise SplitError(f"{_ONLY} Here {len(last)} layers make it: {listed}.")
    found = next(iter(last))
    features = features_of(fetch(flow.root, str(found.target))) if found.op == "call_module" else None
    if features is None or features.names == ("nx", "nf") or features.weight_outputs != 0 or features.groups != 1:
        raise SplitError(f"{_ONLY} Here {shown(flow.root, found)} makes it.")
    return found


def _last_layers(flow: Flow, leaf: fx.Node, place: str) -> list[fx.Node]:
    found: list[fx.Node] = []
    seen: set[fx.Node] = set()
    open_nodes = [leaf]
    while open_nodes:
        node = open_nodes.pop()
        if node in seen or is_size(node) or node not in flow.fed:
            continue
        seen.add(node)
        if has_parameters(flow.root, node):
            found.append(node)
        elif node.op == "placeholder":
            if node.meta["dtype"] is None or node.meta["dtype"].is_floating_point:
                raise SplitError(
                    f"{_ONLY} Here the input {node.name!r} itself goes into {place or 'the output'!r}, past it."
                )
        else:
            open_nodes += flow.inputs[node]
    return found
