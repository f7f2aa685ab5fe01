"""How data flows through a traced graph: when every value is made and last read, and what is alive in between."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from torch import fx

from fxsplit._graph import is_container, is_getter, is_source, is_tensor, output_assembly, output_node, require_traced
from fxsplit._split._aliases import returns_argument

BEFORE = -1  # the moment of the model's inputs
_STRIDE = 64


class Flow:
    """The graph with in-place results made explicit, and every node given its moment of execution.

    After ``y = x.add_(1)`` the names ``x`` and ``y`` mean the same tensor; whoever reads ``x`` later is taken to read
    ``y``, so that liveness follows values and not names. Taking an item out of a container happens when the container
    is made. Parameters, constants and switches have no moment.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.root = require_traced(graph)
        self.nodes: tuple[fx.Node, ...] = tuple(graph.graph.nodes)
        self.position = {node: position for position, node in enumerate(self.nodes)}
        self.output = output_node(graph.graph)
        self.assembly = output_assembly(graph.graph)
        self._identity: dict[fx.Node, fx.Node] = {}
        self._versions: dict[fx.Node, list[fx.Node]] = {}
        for node in self.nodes:
            same = returns_argument(self.root, node)
            if same is not None:
                self._identity[node] = self._identity.get(same, same)
                self._versions.setdefault(self._identity[node], []).append(node)
        self.moment: dict[fx.Node, int] = {}
        for node in self.nodes:
            if not is_source(node) and node not in self.assembly and node is not self.output:
                self.moment[node] = self._moment(node)
        self.inputs = {node: tuple(self.current(a, node) for a in node.all_input_nodes) for node in self.nodes}
        self.readers: dict[fx.Node, list[fx.Node]] = {node: [] for node in self.nodes}
        for node, inputs in self.inputs.items():
            for value in inputs:
                self.readers[value].append(node)

    def _moment(self, node: fx.Node) -> int:
        if node.op == "placeholder":
            return BEFORE
        if is_getter(node):
            owner = node.args[0]
            if isinstance(owner, fx.Node) and owner in self.moment and is_container(owner):
                return self.moment[owner]
        return self.position[node]

    def current(self, value: fx.Node, reader: fx.Node) -> fx.Node:
        """The node that names, when ``reader`` runs, the tensor that ``value`` once named."""
        versions = self._versions.get(self._identity.get(value, value), ())
        newer = [node for node in versions if self.position[value] < self.position[node] < self.position[reader]]
        return newer[-1] if newer else value

    @cached_property
    def last_read(self) -> dict[fx.Node, int]:
        """The moment of the last computation that reads a value; returning it does not count."""
        return {
            node: max((self.moment[r] for r in self.readers[node] if r in self.moment), default=BEFORE)
            for node in self.moment
        }

    def alive(self, moment: int) -> list[fx.Node]:
        """Values made up to ``moment`` that a later computation reads, in order of their making."""
        return [node for node, made, last in self._spans.get(moment // _STRIDE, ()) if made <= moment < last]

    @cached_property
    def _spans(self) -> dict[int, list[tuple[fx.Node, int, int]]]:
        """Values with the moments of their making and last reading, by the stretches of time in which they are alive.

        The stretches make a look-up cost what is alive, and not the length of the graph.
        """
        found: dict[int, list[tuple[fx.Node, int, int]]] = {}
        for node, made in self.moment.items():
            last = self.last_read[node]
            for stretch in range(made // _STRIDE, last // _STRIDE + 1):
                found.setdefault(stretch, []).append((node, made, last))
        return found

    def carries_data(self, node: fx.Node) -> bool:
        """Whether a node's value holds tensors, as opposed to sizes and devices."""
        return is_tensor(node) or is_container(node) or node.op == "placeholder"

    def is_input(self, node: fx.Node) -> bool:
        """Whether a value is an argument of the model, or an item of one."""
        return self.moment.get(node) == BEFORE

    @cached_property
    def data_inputs(self) -> dict[fx.Node, list[fx.Node]]:
        """The values that each value is computed from; sizes and devices are no data."""
        carriers = {node for node in self.nodes if node.op != "output" and self.carries_data(node)}
        return {node: [value for value in self.inputs[node] if value in carriers] for node in carriers}

    @cached_property
    def fed(self) -> set[fx.Node]:
        """Nodes that data of the model's inputs reaches; sizes, parameters and constants are no data."""
        found: set[fx.Node] = set()
        for node in self.nodes:
            if node.op == "placeholder" or any(value in found for value in self.data_inputs.get(node, ())):
                found.add(node)
        return found

    def exit_of(self, nodes: Iterable[fx.Node]) -> int | None:
        """The moment when the last of ``nodes`` has run; None if none of them computes anything."""
        moments = [self.moment[node] for node in nodes if node in self.moment]
        return max((m for m in moments if m != BEFORE), default=None)
