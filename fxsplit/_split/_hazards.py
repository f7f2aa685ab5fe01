"""In-place writes by heads: which crossing values a head would overwrite for the others, and what to do about it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import fx

from fxsplit._cuts._flow import Flow
from fxsplit._graph import is_tensor
from fxsplit._split._aliases import is_pure_view, viewed_arguments, written_argument


class Memory:
    """Whose memory every value may share, followed through views, items, identities and unknown modules."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self.shares: dict[fx.Node, frozenset[fx.Node]] = {}
        self.written: dict[fx.Node, frozenset[fx.Node]] = {}
        for node in flow.nodes:
            shared = {node}
            for value in filter(flow.carries_data, viewed_arguments(flow.root, node)):
                shared |= self.shares[flow.current(value, node)] | self.shares[value]
            self.shares[node] = frozenset(shared)
            overwritten = written_argument(flow.root, node)
            if overwritten is not None:
                self.written[node] = self.shares[flow.current(overwritten, node)]

    def may_overlap(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether two values may look at the same memory. Different parts of one split don't."""
        common = self.shares[one] & self.shares[other]
        if not common:
            return False
        return is_tensor(max(common, key=self._flow.position.__getitem__))


@dataclass(frozen=True)
class Hazards:
    """What in-place writes of the heads ask for.

    Attributes:
        cloned: Values from outside the heads that each head must copy first.
        to_sink: Views that each head must make itself, so that it sees its own writes through them.
    """

    cloned: frozenset[fx.Node]
    to_sink: frozenset[fx.Node]


def find_hazards(
    memory: Memory, head: Iterable[fx.Node], entering: Collection[fx.Node], returned: Collection[fx.Node]
) -> Hazards:
    """Examine the writes of a head.

    Args:
        memory: Of the whole graph.
        head: Nodes of one head.
        entering: Values that enter the head from outside.
        returned: Values from outside the head that the model returns.
    """
    cloned: set[fx.Node] = set()
    to_sink: set[fx.Node] = set()
    for node in head:
        written = memory.written.get(node, frozenset())
        hit = [value for value in entering if value in written]
        cloned.update(hit)
        for value in hit:
            others = [v for v in {*entering, *returned} if v not in written and memory.may_overlap(v, value)]
            to_sink.update(v for v in (value, *others) if others and is_pure_view(v))
    return Hazards(frozenset(cloned), frozenset(to_sink))
