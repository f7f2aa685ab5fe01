"""Regions: connected groups of operations that can run as one plan, without leaving it and coming back."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import fx

from sparsity.runtime._ops import Frame, Layer, Op, Reshape
from sparsity.runtime._program import Ops


@dataclass(eq=False)
class Unit:
    """What runs as one: a region of several operations in one plan, or a single operation in torch.

    Attributes:
        ops: The operations, in order.
        frames: The ways in which all of them can be cut into samples; empty in torch.
    """

    ops: list[Op]
    frames: frozenset[Frame] = field(default_factory=frozenset)

    @property
    def frame(self) -> Frame:
        """The frame of the plan; rows if both would do, since they leave the leading dimensions open."""
        return max(self.frames)

    @property
    def planned(self) -> bool:
        """Whether it runs as a plan."""
        return bool(self.frames)


def partition(ops: Ops, chains: Iterable[list[fx.Node]] = ()) -> list[Unit]:
    """Group operations into regions that are as large as can be, and order everything so that it can run.

    A region has at least one sparse layer; operations that found none run in torch.
    """
    groups = _Groups(ops, chains)
    for op in ops:
        groups.add(op)
    groups.dissolve()
    return groups.ordered()


class _Groups:
    """The units so far and the dependencies between them, which never form a cycle."""

    def __init__(self, ops: Ops, chains: Iterable[list[fx.Node]]) -> None:
        self.ops = ops
        self.unit: dict[fx.Node, Unit] = {}
        self.position = {op.node: index for index, op in enumerate(ops)}
        # What has to run in order because it shares memory that is written.
        self.after: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for chain in chains:
            known = [node for node in chain if node in self.position]
            for first, second in itertools.pairwise(known):
                self.after[second].append(first)

    def add(self, op: Op) -> None:
        frames = _frames(self.ops, op)
        self.unit[op.node] = Unit([op], frames)
        # Regions that it reads from, and those that read what it reads.
        siblings = [reader.node for node in op.inputs for reader in self.ops.readers(node)]
        for node in dict.fromkeys([*op.inputs, *siblings]):
            if node in self.unit:
                self._merge(self.unit[op.node], self.unit[node])

    def _merge(self, first: Unit, second: Unit) -> None:
        frames = first.frames & second.frames
        if first is second or not frames or self._apart(first, second) or self._apart(second, first):
            return
        merged = Unit(sorted([*first.ops, *second.ops], key=lambda op: self.position[op.node]), frames)
        for op in merged.ops:
            self.unit[op.node] = merged

    def _before(self, unit: Unit) -> set[Unit]:
        """Units that have to run before this one."""
        nodes = (node for op in unit.ops for node in (*op.inputs, *self.after[op.node]))
        return {self.unit[node] for node in nodes if node in self.unit} - {unit}

    def _apart(self, start: Unit, end: Unit) -> bool:
        """Whether a way from ``start`` to ``end`` leads over a third unit, so that they can't be one."""
        seen: set[Unit] = set()
        waiting = [each for each in self._before(end) if each is not start]
        while waiting:
            unit = waiting.pop()
            if unit is start:
                return True
            if unit not in seen:
                seen.add(unit)
                waiting.extend(self._before(unit))
        return False

    def dissolve(self) -> None:
        """Give what has no sparse layer back to torch, and the ends of regions that a plan would only copy."""
        for unit in {id(each): each for each in self.unit.values()}.values():
            if unit.planned and not any(_is_sparse(op) for op in unit.ops):
                for op in unit.ops:
                    self.unit[op.node] = Unit([op])
            elif unit.planned:
                made = {op.node for op in unit.ops}
                for op in [op for op in unit.ops if isinstance(op, Reshape) and op.inputs[0] not in made]:
                    unit.ops.remove(op)
                    self.unit[op.node] = Unit([op])

    def ordered(self) -> list[Unit]:
        """All units in an order in which they can run, as close to that of the graph as can be."""
        units = list({id(each): each for each in self.unit.values()}.values())
        first = {unit: self.position[unit.ops[0].node] for unit in units}
        waiting = {unit: self._before(unit) for unit in units}
        done: set[Unit] = set()
        order: list[Unit] = []
        pending = sorted(units, key=first.__getitem__)
        while pending:
            unit = next(each for each in pending if waiting[each] <= done)
            pending.remove(unit)
            done.add(unit)
            order.append(unit)
        return order


def side_by_side(ops: list[Op]) -> list[Op]:
    """Order operations by their depth, so that heads advance together and threads can share them out.

    Otherwise one head runs after the other, which keeps what it works on in the cache of a single thread.
    """
    depth: dict[fx.Node, int] = {}
    for op in ops:
        depth[op.node] = 1 + max((depth.get(node, 0) for node in op.inputs), default=0)
    return sorted(ops, key=lambda op: depth[op.node])


def _is_sparse(op: Op) -> bool:
    return isinstance(op, Layer) and op.choice is not None and op.choice.sparse


def _frames(ops: Ops, op: Op) -> frozenset[Frame]:
    shapes = ops.source.shapes
    if isinstance(op, Layer) and not _is_sparse(op):
        return frozenset()
    # A constant is the same for every sample, so it can't be cut into them.
    constant = any(node in ops.source.facts.constants or node not in shapes for node in op.inputs)
    return frozenset() if constant or op.node not in shapes else op.frames(shapes)
