"""Which values every way from the model's inputs to another value must pass."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

from torch import fx

from fxsplit._cuts._flow import BEFORE, Flow


class Dominance:
    """Answers questions about ways through a graph, at a cost that does not grow with what lies far behind."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._free: dict[frozenset[fx.Node], set[fx.Node]] = {}

    @cached_property
    def _tree(self) -> dict[fx.Node, tuple[fx.Node | None, int]]:
        """The dominator tree: the nearest dominator of every value that data of the inputs reaches, and its depth."""
        tree: dict[fx.Node, tuple[fx.Node | None, int]] = {}
        for node in self._flow.nodes:
            if node not in self._flow.fed or node not in self._flow.data_inputs:
                continue
            above = [value for value in self._flow.data_inputs[node] if value in tree]
            nearest = None if node.op == "placeholder" or not above else above[0]
            for value in above[1:]:
                nearest = self._common(tree, nearest, value)
            tree[node] = nearest, 0 if nearest is None else tree[nearest][1] + 1
        return tree

    @staticmethod
    def _common(
        tree: dict[fx.Node, tuple[fx.Node | None, int]], one: fx.Node | None, other: fx.Node | None
    ) -> fx.Node | None:
        while one is not other:
            if one is None or other is None:
                return None
            if tree[one][1] >= tree[other][1]:
                one = tree[one][0]
            else:
                other = tree[other][0]
        return one

    def dominates(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether all data on its way from the inputs to ``other`` passes ``one``; a value dominates itself."""
        here: fx.Node | None = other
        if one not in self._tree or other not in self._tree:
            return False
        depth = self._tree[one][1]
        while here is not None and self._tree[here][1] > depth:
            here = self._tree[here][0]
        return here is one

    def bypasses(self, node: fx.Node, blocked: Collection[fx.Node], horizon: int = BEFORE) -> bool:
        """Whether data reaches ``node`` from the model's inputs on a way that avoids all of ``blocked``.

        Args:
            node: Any value.
            blocked: What the way must avoid.
            horizon: A moment of which the answer does not depend. Behind it nothing is searched, but looked up in a
                table for those of ``blocked`` that are made there, so that it should leave few different sets of them.
        """
        moment, data_inputs = self._flow.moment, self._flow.data_inputs
        free = self._reached_without(frozenset(value for value in blocked if moment[value] <= horizon))
        seen = set(blocked)
        open_nodes = [node]
        while open_nodes:
            here = open_nodes.pop()
            if here in seen or here not in self._flow.fed:
                continue
            seen.add(here)
            if moment[here] > horizon:
                open_nodes += data_inputs[here]
            elif here in free:
                return True
        return False

    def _reached_without(self, blocked: frozenset[fx.Node]) -> set[fx.Node]:
        if not blocked:
            return self._flow.fed
        if blocked not in self._free:
            reached: set[fx.Node] = set()
            for node in self._flow.nodes:
                above = self._flow.data_inputs.get(node, ())
                if node not in blocked and (node.op == "placeholder" or any(value in reached for value in above)):
                    reached.add(node)
            self._free[blocked] = reached
        return self._free[blocked]
