"""What becomes of M batches in one: tried out on the traced model, so that nothing about a batch has to be assumed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxsplit._ensemble._layers import shown
from fxsplit._ensemble._rehearsal import RehearsalError, example_inputs, rehearse, varied
from fxsplit._errors import SplitError
from fxsplit._split._partition import Partition
from fxsplit._trace import TracedModel
from fxsplit._trace._fit import BATCH
from fxsplit._trace._guards import ContainerRule, Rule, TensorRule, guard_of


@dataclass
class Trial:
    """How a graph treats a batch that holds the rows of M members, one member after the other.

    Attributes:
        shapes: Of the trunk's values, by node.
        divided: Those of the crossing values of which every member gets its rows; the others are the same for all.
        layers: Nodes whose input holds the rows of all members; the input of other layers does not depend on a batch.
    """

    shapes: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    divided: set[fx.Node] = field(default_factory=set)
    layers: set[fx.Node] = field(default_factory=set)


def batch_inputs(graph: TracedModel) -> list[fx.Node]:
    """The inputs whose first dimension is the batch.

    Raises:
        SplitError: The graph holds for one batch size only, or a batch is inside of a container.
    """
    guard = guard_of(graph.graph)
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    rules: Iterable[Rule] = guard.rules if guard is not None else ()
    found = []
    for node, rule in zip(placeholders, rules, strict=True):
        if isinstance(rule, ContainerRule):
            raise SplitError(
                f"BatchEnsemble repeats the rows of every input, but {rule.name!r} is a {rule.kind} of tensors. Wrap "
                "the model in a module that takes the tensors one by one."
            )
        if isinstance(rule, TensorRule) and rule.shape and rule.shape[0] == BATCH:
            found.append(node)
    if not found:
        raise SplitError(
            "BatchEnsemble runs all members as one large batch, but this graph holds for the batch size of its example "
            f"only: {'; '.join(graph.report.warnings) or 'no input has a batch'}."
        )
    return found


def try_out(
    graph: TracedModel, parts: Partition, batched: Collection[fx.Node], layers: Collection[fx.Node], members: int
) -> Trial:
    """Run the trunk on the rows of M members at once, twice: with other rows for the last member, nothing of the
    others' may change.

    Args:
        graph: The traced model.
        parts: Its two sides.
        batched: Inputs with a batch.
        layers: Nodes whose input shall hold the rows of all members.
        members: Number of members M.

    Raises:
        SplitError: The rows of the members can't be told apart, or depend on each other.
    """
    given = example_inputs(graph, graph.meta["batch"])
    once = _run(graph, parts, given, ())
    tiled = [_tiled(given, batched, members, last) for last in (False, True)]
    entering: list[dict[fx.Node, Any]] = [{}, {}]
    values = [_run(graph, parts, each, layers, seen) for each, seen in zip(tiled, entering, strict=True)]
    trial = Trial()
    for node in parts.trunk:
        if isinstance(values[0].get(node), Tensor):
            trial.shapes[node] = tuple(values[0][node].shape)
    for node in layers:
        before = _shape(node.all_input_nodes[0])
        if _grown(entering[0][node], before, members, f"the input of {shown(graph, node)}"):
            trial.layers.add(node)
            _check_apart(entering[0][node], entering[1][node], members, f"the input of {shown(graph, node)}")
    for node in parts.crossing:
        what = f"{node.name!r}, which the members' outputs are made of,"
        grown = _grown(values[0][node], once[node], members, what)
        if grown:
            trial.divided.add(node)
        _check_apart(values[0][node], values[1][node], members if grown else None, what)
    return trial


def _run(
    graph: TracedModel,
    parts: Partition,
    given: Mapping[fx.Node, Any],
    layers: Collection[fx.Node],
    seen: dict[fx.Node, Any] | None = None,
) -> dict[fx.Node, Any]:
    def observe(node: fx.Node, args: tuple[Any, ...]) -> None:
        if seen is not None and node in layers:
            seen[node] = args[0].clone()

    try:
        return rehearse(graph, parts.trunk, given, observe)
    except RehearsalError as error:
        raise SplitError(
            f"BatchEnsemble runs all members as one large batch, but {shown(graph, error.node)} fails on it: "
            f"{error.__cause__}"
        ) from error.__cause__


def _tiled(given: Mapping[fx.Node, Any], batched: Collection[fx.Node], members: int, last: bool) -> dict[fx.Node, Any]:
    tiled = dict(given)
    for node in batched:
        rows = [given[node]] * members
        if last:
            rows[-1] = varied(rows[-1], 0)
        tiled[node] = torch.cat(rows)
    return tiled


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta.get("shape") or ())


def _grown(value: Any, before: Any, members: int, what: str) -> bool:
    """Whether a value has M times the rows that it has for one member; False if it is the same for any batch."""
    if isinstance(value, Tensor):
        shape = tuple(before.shape) if isinstance(before, Tensor) else tuple(before)
        if value.shape == shape:
            return members == 1
        if value.ndim and tuple(value.shape) == (shape[0] * members, *shape[1:]):
            return True
        problem = f"is {list(value.shape)} for {members} batches, and {list(shape)} for one"
    elif type(value) is int:
        if value == before:
            return False
        if value == before * members:
            return True
        problem = f"is {value} for {members} batches, and {before} for one"
    elif value == before:
        return False
    else:
        problem = f"is a {type(value).__name__}"
    raise SplitError(
        f"BatchEnsemble runs all members as one large batch, whose rows have to stay the first dimension, but {what} "
        f"{problem}. Name the layers that shall have factors with layers=..., or put the batch first in the model."
    )


def _check_apart(value: Any, other: Any, members: int | None, what: str) -> None:
    """Refuse a value of which the rows of the first members, or all for None, follow what the last one is given."""
    if not isinstance(value, Tensor) or value.is_meta:
        return
    if members is not None:
        kept = value.shape[0] // members * (members - 1)
        value, other = value[:kept], other[:kept]
    if not torch.equal(value.nan_to_num(), other.nan_to_num()):
        raise SplitError(
            f"BatchEnsemble runs all members as one large batch, but {what} mixes rows: those of the first members "
            "change with the input of the last one. The model depends on a batch as a whole, or reorders it."
        )
