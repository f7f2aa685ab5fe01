"""Assigns every node of a graph to the trunk, to the heads, or to both."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import fx

from fxsplit._cuts._flow import Flow
from fxsplit._graph import is_source, output_leaves
from fxsplit._split._hazards import Memory, find_hazards


@dataclass(frozen=True)
class Partition:
    """The two sides of a cut; all lists in order of execution.

    Attributes:
        trunk: Nodes of the trunk.
        head: Nodes of one head. Parameters, switches and views that both sides need are in both lists.
        crossing: Values that the trunk hands to every head, the main ones first.
        inputs: Arguments of the model that go to the heads directly.
        cloned: Those of ``crossing`` and ``inputs`` that a head overwrites, so that each head copies them first.
        leaves: What the heads return, by its place in the model's output.
        passed: What the trunk returns for the model's output, or what the model's inputs contribute to it.
    """

    trunk: tuple[fx.Node, ...]
    head: tuple[fx.Node, ...]
    crossing: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    cloned: frozenset[fx.Node]
    leaves: dict[str, fx.Node]
    passed: dict[str, fx.Node]


def divide(flow: Flow, moment: int, mains: Sequence[str]) -> Partition:
    """Divide a graph at a moment.

    Args:
        flow: Of the graph.
        moment: The last one of the trunk.
        mains: Names of the main crossing tensors.
    """
    memory = Memory(flow)
    returned = {place: flow.current(node, flow.output) for place, node in output_leaves(flow.root.graph).items()}
    after = {node for node, made in flow.moment.items() if made > moment}
    state = _written_sources(flow, memory, after)
    sunk: set[fx.Node] = set()
    while True:
        head = _with_sources(flow, [*after, *sunk, *(n for n in returned.values() if is_source(n))], state)
        entering = {v for n in head for v in flow.inputs[n] if v not in head}
        hazards = find_hazards(memory, head, entering, {n for n in returned.values() if n not in head})
        if hazards.to_sink <= sunk:
            break
        sunk |= hazards.to_sink
    leaves = {place: n for place, n in returned.items() if n in head or n in hazards.cloned}
    passed = {place: n for place, n in returned.items() if place not in leaves}
    entering |= {n for n in leaves.values() if n not in head}
    crossing = [n for n in entering if n.op != "placeholder"]
    # An empty trunk still hands the main input on, so that every split model has the same structure.
    crossing = crossing or [n for n in entering if n.name in mains]
    before = [n for n in flow.nodes if n in flow.moment and n not in after and n.op != "placeholder"]
    before = _without_idle(flow, before, sunk - set(passed.values()))
    trunk = _with_sources(flow, [*before, *(n for n in state if n in entering)], frozenset())
    order = flow.position.__getitem__
    rank = {name: index for index, name in enumerate(mains)}
    return Partition(
        trunk=tuple(sorted(trunk, key=order)),
        head=tuple(sorted(head, key=order)),
        crossing=tuple(sorted(crossing, key=lambda n: (rank.get(n.name, len(rank)), order(n)))),
        inputs=tuple(sorted((n for n in entering if n not in crossing), key=order)),
        cloned=hazards.cloned,
        leaves=leaves,
        passed=passed,
    )


def _with_sources(flow: Flow, nodes: Iterable[fx.Node], exclude: Collection[fx.Node]) -> set[fx.Node]:
    """Nodes together with the parameters, constants and switches that they read."""
    found = set(nodes)
    found |= {value for node in found for value in flow.inputs[node] if is_source(value)}
    return found.difference(exclude)


def _written_sources(flow: Flow, memory: Memory, after: Collection[fx.Node]) -> frozenset[fx.Node]:
    """Buffers that the trunk updates: a head that reads one must get it from the trunk, not its own copy of it."""
    updates = [shared for node, shared in memory.written.items() if node not in after]
    return frozenset(value for shared in updates for value in shared if is_source(value))


def _without_idle(flow: Flow, nodes: list[fx.Node], candidates: Collection[fx.Node]) -> list[fx.Node]:
    """Drop those candidates that no remaining node reads."""
    kept: set[fx.Node] = set()
    for node in reversed(nodes):
        if node not in candidates or any(reader in kept for reader in flow.readers[node]):
            kept.add(node)
    return [node for node in nodes if node in kept]
