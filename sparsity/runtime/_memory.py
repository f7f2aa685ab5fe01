"""Where buffers go in one arena: buffers that are not alive at the same time share memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ALIGNMENT = 16
"""Floats; a cache line of 64 bytes."""


@dataclass(frozen=True)
class Lifetime:
    """A buffer of ``floats`` that is written in step ``first`` and read for the last time in step ``last``."""

    floats: int
    first: int
    last: int


def first_fit(lifetimes: Mapping[int, Lifetime]) -> tuple[dict[int, int], int]:
    """Give each buffer the lowest offset at which nothing lies that is alive at the same time, large buffers first.

    Returns:
        Offset of each buffer in floats, a multiple of `ALIGNMENT`, and the size of the arena.

    Example:
        >>> first_fit({0: Lifetime(20, 0, 1), 1: Lifetime(16, 1, 2), 2: Lifetime(16, 2, 3)})
        ({0: 0, 1: 32, 2: 0}, 48)
    """
    placed: list[tuple[int, int, Lifetime]] = []
    offsets: dict[int, int] = {}
    for index, lifetime in sorted(lifetimes.items(), key=lambda item: (-item[1].floats, item[1].first)):
        size = -(-lifetime.floats // ALIGNMENT) * ALIGNMENT
        offset = 0
        for start, end, other in sorted(placed, key=lambda each: each[0]):
            alive = lifetime.first <= other.last and other.first <= lifetime.last
            if alive and start < offset + size and offset < end:
                offset = end
        placed.append((offset, offset + size, lifetime))
        offsets[index] = offset
    return dict(sorted(offsets.items())), max((end for _, end, _ in placed), default=0)
