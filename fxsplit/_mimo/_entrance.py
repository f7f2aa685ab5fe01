"""Where a model's input enters its first layer, and along which dimension inputs have to be concatenated for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxsplit._cuts._flow import Flow
from fxsplit._ensemble._layers import features_of, has_parameters, shown
from fxsplit._ensemble._rehearsal import RehearsalError, example_inputs, rehearse, varied
from fxsplit._errors import SplitError
from fxsplit._graph import fetch, is_size
from fxsplit._trace import TracedModel

_ONLY = (
    "MIMO needs a model whose input goes into a Linear or a Conv1d/2d/3d without groups first, since that layer gets "
    "the inputs of all members side by side."
)


@dataclass(frozen=True)
class Entrance:
    """The way of a model's input to its first layers.

    Attributes:
        placeholder: The input.
        layers: The layers that it enters; several if it goes into them in parallel.
        before: Nodes that come before them, in order, with all that these need.
    """

    placeholder: fx.Node
    layers: tuple[fx.Node, ...]
    before: tuple[fx.Node, ...]


def find_entrance(flow: Flow) -> Entrance:
    """Find the input that is data, and the layers that it enters.

    Raises:
        SplitError: There is no such input, there are several, or it does not enter layers of the right kinds alone.
    """
    inputs = [node for node in flow.nodes if node.op == "placeholder"]
    floating = [node for node in inputs if node.meta["dtype"] is not None and node.meta["dtype"].is_floating_point]
    entered = {node: _entered(flow, node) for node in floating or inputs}
    used = [node for node in entered if entered[node]]
    if not used:
        raise SplitError(f"{_ONLY} No input of this model ({_names(inputs)}) enters a layer with weights.")
    found = {node: ", ".join(shown(flow.root, layer) for layer in entered[node]) for node in used}
    if len(used) > 1:
        listed = "; ".join(f"{node.name!r} into {layers}" for node, layers in found.items())
        raise SplitError(f"{_ONLY} This model has {len(used)} inputs that enter layers: {listed}.")
    placeholder = used[0]
    for layer in entered[placeholder]:
        features = features_of(fetch(flow.root, str(layer.target))) if layer.op == "call_module" else None
        if features is None or features.names == ("nx", "nf") or features.weight_inputs == 0 or features.groups != 1:
            raise SplitError(f"{_ONLY} The input {placeholder.name!r} enters {found[placeholder]}.")
    return Entrance(placeholder, entered[placeholder], _before(flow, entered[placeholder]))


def _entered(flow: Flow, placeholder: fx.Node) -> tuple[fx.Node, ...]:
    """The first nodes with parameters on every way from an input.

    Raises:
        SplitError: The input goes on past them, to where it would meet what they made of it.
    """
    carriers, layers, behind = {placeholder}, [], set()
    for node in flow.nodes:
        values = set(flow.inputs[node])
        if values & behind and values & carriers:
            met = next(iter(values & carriers))
            raise SplitError(
                f"{_ONLY} Here {met.name!r}, made of the input {placeholder.name!r}, meets at {node.name!r} what "
                f"{', '.join(shown(flow.root, layer) for layer in layers)} made of it: a connection that skips the "
                "first layer."
            )
        if is_size(node):
            continue
        if values & behind or (values & carriers and has_parameters(flow.root, node)):
            behind.add(node)
            if values & carriers:
                layers.append(node)
        elif values & carriers:
            carriers.add(node)
    if flow.output in carriers and layers:
        raise SplitError(f"{_ONLY} This model also returns its input {placeholder.name!r} past all layers.")
    return tuple(layers)


def _before(flow: Flow, layers: tuple[fx.Node, ...]) -> tuple[fx.Node, ...]:
    needed: set[fx.Node] = set()
    open_nodes = [value for layer in layers for value in flow.inputs[layer]]
    while open_nodes:
        node = open_nodes.pop()
        if node not in needed:
            needed.add(node)
            open_nodes += flow.inputs[node]
    return tuple(node for node in flow.nodes if node in needed)


def find_dim(graph: TracedModel, entrance: Entrance, members: int) -> int:
    """The dimension of the input along which M inputs have to be concatenated.

    Tried out: what comes before the first layer has to make of M inputs side by side what it makes of each, side by
    side in the dimension of the layer's features.

    Raises:
        SplitError: There is none.
    """
    batch = graph.meta["batch"]
    given = example_inputs(graph, batch)
    values = [varied(given[entrance.placeholder], seed) for seed in range(members)]
    if not isinstance(values[0], Tensor):
        raise SplitError(f"{_ONLY} The input {entrance.placeholder.name!r} is a {type(values[0]).__name__}.")
    entering = [_entering(graph, entrance, {**given, entrance.placeholder: value}) for value in values]
    wanted = [
        torch.cat([each[index] for each in entering], _features_dim(graph, layer))
        for index, layer in enumerate(entrance.layers)
    ]
    reasons = []
    for dim in range(1, values[0].ndim):
        try:
            got = _entering(graph, entrance, {**given, entrance.placeholder: torch.cat(values, dim)})
        except RehearsalError as error:
            reasons.append(f"dimension {dim}: {error.node.name!r} fails with {error.__cause__}")
            continue
        if all(_equal(*pair) for pair in zip(got, wanted, strict=True)):
            return dim
        reasons.append(f"dimension {dim}: another input of the first layer")
    layers = ", ".join(shown(graph, layer) for layer in entrance.layers)
    raise SplitError(
        f"The inputs of {members} members can't be put side by side: whatever dimension of "
        f"{entrance.placeholder.name!r} they are concatenated along, the nodes before {layers} "
        f"({_names(n for n in entrance.before if n.op != 'placeholder')}) don't make M times the features of it. "
        f"{'; '.join(reasons)}. Move what comes before the first layer out of the model."
    )


def _entering(graph: TracedModel, entrance: Entrance, given: dict[fx.Node, Any]) -> list[Tensor]:
    values = rehearse(graph, entrance.before, given)
    return [values[layer.all_input_nodes[0]] for layer in entrance.layers]


def _features_dim(graph: TracedModel, layer: fx.Node) -> int:
    features = features_of(fetch(graph, str(layer.target)))
    return -1 if features is None else features.dim


def _equal(got: Tensor, wanted: Tensor) -> bool:
    if got.shape != wanted.shape or got.is_meta:
        return got.shape == wanted.shape
    return torch.allclose(got, wanted, equal_nan=True)


def _names(nodes: Any) -> str:
    return ", ".join(repr(node.name) for node in nodes) or "none"
