"""The list of operations that compiling works on, with who reads what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx, nn

from sparsity.runtime._facts import Facts
from sparsity.runtime._ops import Layer, Op, Shape


@dataclass
class Source:
    """What operations refer to: modules by path, and what one run showed."""

    root: nn.Module
    graph: fx.Graph
    facts: Facts

    @property
    def shapes(self) -> dict[fx.Node, Shape]:
        """Shape of every float32 value."""
        return self.facts.shapes


class Ops:
    """Operations in an order in which they can run, each under the node whose value it computes."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._ops: dict[fx.Node, Op] = {}
        self._readers: dict[fx.Node, dict[Op, None]] = {}
        output = next(node for node in source.graph.nodes if node.op == "output")
        self.outputs: set[fx.Node] = set(output.all_input_nodes)

    def __iter__(self) -> Iterator[Op]:
        return iter(list(self._ops.values()))

    def __contains__(self, op: Op) -> bool:
        return self._ops.get(op.node) is op

    def of(self, node: fx.Node) -> Op:
        """The operation that computes a value."""
        return self._ops[node]

    def add(self, op: Op) -> None:
        """Append an operation."""
        self._ops[op.node] = op
        for each in op.inputs:
            self._readers.setdefault(each, {})[op] = None

    def replace(self, op: Op, new: Op) -> None:
        """Put ``new``, which computes the same value, in the place of ``op``."""
        for each in op.inputs:
            self._readers[each].pop(op, None)
        self._ops[op.node] = new
        for each in new.inputs:
            self._readers.setdefault(each, {})[new] = None

    def remove(self, op: Op) -> None:
        """Take out an operation that nobody reads."""
        del self._ops[op.node]
        for each in op.inputs:
            self._readers[each].pop(op, None)

    def moved(self, op: Op, node: fx.Node, inputs: list[fx.Node]) -> None:
        """Let ``op`` compute the value of the later ``node`` instead of that value's own operation."""
        self.remove(op)
        old = self._ops[node]
        op.node, op.inputs, op.verbatim = node, inputs, False
        self.replace(old, op)

    def redirect(self, old: fx.Node, new: fx.Node) -> None:
        """Let all operations that read ``old`` read ``new``; the graph stays as it is."""
        for op in list(self._readers.get(old, ())):
            op.renamed(old, new)
            self._readers.setdefault(new, {})[op] = None
        self._readers[old] = {}

    def readers(self, node: fx.Node) -> list[Op]:
        """Operations that read a value; the output of the graph is none."""
        return list(self._readers.get(node, ()))

    def only_reader(self, op: Op) -> Op | None:
        """The one operation that reads the value of ``op``, if nothing else does."""
        readers = self.readers(op.node)
        return readers[0] if len(readers) == 1 and op.node not in self.outputs else None

    @property
    def layers(self) -> list[Layer]:
        """All convolutions and linear layers."""
        return [op for op in self if isinstance(op, Layer)]
