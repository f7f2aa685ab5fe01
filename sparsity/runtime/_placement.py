"""Where the buffers of a plan lie, and whether its steps may read and write them so."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from sparsity._errors import PlanError

ALIGNMENT = 16
"""Offsets in the arena are multiples of so many floats: a cache line."""


@dataclass(frozen=True)
class _Access:
    kind: str
    target: int
    reads: tuple[int, ...]
    in_place: frozenset[int]


@dataclass
class Placement:
    """The buffers of a plan, what its steps do with them, and their offsets in the arena.

    Args:
        floats: of each buffer, per sample.
    """

    floats: list[int] = field(default_factory=list)
    _offsets: dict[int, int] = field(default_factory=dict)
    _steps: list[_Access] = field(default_factory=list)

    def add(self, floats: int) -> None:
        """Note a new buffer.

        Raises:
            PlanError: it would be empty.
        """
        if floats < 1:
            raise PlanError(f"a buffer must hold at least one float per sample, got {floats}")
        self.floats.append(floats)

    def place(self, buffer: int, offset: int) -> None:
        """Note a buffer's offset in the arena.

        Raises:
            PlanError: there is no such buffer, or no such offset.
        """
        self._known(buffer, "place")
        if offset < 0 or offset % ALIGNMENT:
            raise PlanError(f"buffer {buffer}: the offset must be a multiple of {ALIGNMENT}, got {offset}")
        self._offsets[buffer] = offset

    def step(self, kind: str, target: int, floats: int, reads: Mapping[int, int], in_place: Collection[int]) -> None:
        """Note a step that writes ``floats`` to ``target``; ``in_place`` are those of ``reads`` that may be the target.

        Raises:
            PlanError: a buffer is unknown, of another size, or read and written at once.
        """
        for buffer, count in {**reads, target: floats}.items():
            self._known(buffer, kind)
            if self.floats[buffer] != count:
                raise PlanError(
                    f"{kind}: buffer {buffer} must hold {count} floats per sample, it holds {self.floats[buffer]}"
                )
        if target in reads and target not in in_place:
            raise PlanError(f"{kind}: buffer {target} cannot be both source and target")
        self._steps.append(_Access(kind, target, tuple(reads), frozenset(in_place)))

    def finish(self, inputs: Sequence[int], outputs: Sequence[int], arena: int) -> None:
        """Check the whole plan.

        Raises:
            PlanError: a buffer lies nowhere, outside the arena or twice; is read before it is written; an input is
                written or an output is not; or a step's source overlaps its target.
        """
        given = [*inputs, *outputs]
        for buffer in given:
            self._known(buffer, "finish")
            if given.count(buffer) > 1 or buffer in self._offsets:
                raise PlanError(f"buffer {buffer} is more than one of input, output and placed in the arena")
        for buffer, offset in self._offsets.items():
            if offset + self.floats[buffer] > arena:
                raise PlanError(f"buffer {buffer} ends at {offset + self.floats[buffer]}, the arena at {arena}")
        written = set(inputs)
        for step in self._steps:
            for buffer in step.reads:
                if buffer not in written:
                    raise PlanError(f"{step.kind} reads buffer {buffer}, which nothing has written")
                if self._clash(buffer, step.target) and not (
                    buffer in step.in_place and self._same(buffer, step.target)
                ):
                    raise PlanError(f"{step.kind}: source {buffer} overlaps target {step.target}")
            if step.target in inputs:
                raise PlanError(f"{step.kind} writes to buffer {step.target}, an input")
            if step.target not in outputs and step.target not in self._offsets:
                raise PlanError(f"buffer {step.target} is neither input nor output, and not placed in the arena")
            written.add(step.target)
        for buffer in outputs:
            if buffer not in written:
                raise PlanError(f"output buffer {buffer} is written by no step")

    def _clash(self, a: int, b: int) -> bool:
        if a not in self._offsets or b not in self._offsets:
            return a == b
        x, y = self._offsets[a], self._offsets[b]
        return x < y + self.floats[b] and y < x + self.floats[a]

    def _same(self, a: int, b: int) -> bool:
        return a == b or self._offsets.get(a, -1) == self._offsets.get(b, -2)

    def _known(self, buffer: int, kind: str) -> None:
        if not 0 <= buffer < len(self.floats):
            raise PlanError(f"{kind}: there is no buffer {buffer}")
