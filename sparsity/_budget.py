"""A number of active weights to be spread over layers, and its rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sparsity._errors import AllocationError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Budget:
    """What an allocation has to spread.

    Attributes:
        shapes: Shape of each weight by path, not empty.
        total: Number of active blocks over all weights together.
        block: Number of weights that are active or not together; it divides the size of each weight.
    """

    shapes: Shapes
    total: int
    block: int = 1

    @property
    def sizes(self) -> dict[str, int]:
        """Number of blocks of each weight."""
        return {path: math.prod(shape) // self.block for path, shape in self.shapes.items()}

    @property
    def size(self) -> int:
        """Number of blocks."""
        return sum(self.sizes.values())

    @property
    def unit(self) -> str:
        """What the numbers count, for messages."""
        return "weights" if self.block == 1 else f"blocks of {self.block} weights"


@runtime_checkable
class Exact(Protocol):
    """An allocation that gives whole numbers itself, instead of densities that are rounded."""

    def counts(self, budget: Budget) -> dict[str, int]:
        """Return the number of active blocks of each weight; they add up to the budget's total."""
        ...


def whole(quotas: Mapping[str, float], sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Round quotas to counts in [1, size] that add up to ``total``, by largest remainder.

    Raises:
        AllocationError: No such counts exist.
    """
    if not len(sizes) <= total <= sum(sizes.values()):
        raise AllocationError(f"{total} can't be spread over {len(sizes)} layers that hold 1 to {sum(sizes.values())}.")
    counts = {path: min(max(math.floor(quota), 1), sizes[path]) for path, quota in quotas.items()}
    while (missing := total - sum(counts.values())) != 0:
        step = 1 if missing > 0 else -1
        movable = [path for path in counts if 1 <= counts[path] + step <= sizes[path]]
        movable.sort(key=lambda path: step * (counts[path] - quotas[path]))
        for path in movable[: abs(missing)]:
            counts[path] += step
    return counts
