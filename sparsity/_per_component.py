"""Each component of a split model meets the density by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sparsity._allocation import Allocation, Densities, check_allocation, distribute, resolve
from sparsity._budget import Budget, Shapes, whole
from sparsity._components import by_component, component_of
from sparsity._errors import AllocationError


def per_component(allocation: Allocation = "erk") -> PerComponent:
    """Return an allocation by which ``trunk`` and each of ``heads.<i>`` meet the sparsity by themselves.

    The share of the trunk and of each head is its size, rounded by largest remainder so that the total over all of them
    is still exact; within a component the weights share by ``allocation``. Components are told by paths, and weights
    outside of trunk and heads are the component ``model``: in a net that was not split, all of them. A weight that
    several heads share counts where it comes first.

    Args:
        allocation: ``'erk'``, ``'er'``, ``'uniform'``; a dict of densities by path or glob, the weights that it leaves
            out sharing the rest of their component by ERK; or a callable, called for each component alone.

    Raises:
        AllocationError: ``allocation`` is of no known kind; or later, a component can't meet the sparsity by itself.

    Example:
        >>> from sparsity import allocate
        >>> shapes = {"trunk.fc.weight": (10, 10), "heads.0.fc.weight": (2, 10), "heads.1.fc.weight": (2, 10)}
        >>> allocate(shapes, 0.5, per_component("erk"))
        {'trunk.fc.weight': 50, 'heads.0.fc.weight': 10, 'heads.1.fc.weight': 10}
        >>> allocate(shapes, 0.5, "erk")
        {'trunk.fc.weight': 32, 'heads.0.fc.weight': 19, 'heads.1.fc.weight': 19}
    """
    check_allocation(allocation)
    return PerComponent(allocation)


@dataclass(frozen=True)
class PerComponent:
    """An allocation, made by `per_component`, that applies another one to each component alone."""

    allocation: Allocation

    def __call__(self, shapes: Shapes, density: float) -> dict[str, float]:
        """Return the density of each weight, from whole numbers of weights."""
        sizes = {path: math.prod(shape) for path, shape in shapes.items()}
        counts = self.counts(Budget(shapes, round(density * sum(sizes.values()))))
        return {path: counts[path] / size for path, size in sizes.items()}

    def counts(self, budget: Budget) -> dict[str, int]:
        """Return the number of active blocks of each weight.

        Raises:
            AllocationError: A component can't meet its share.
        """
        # Over all weights, so that a path is right if any component has it.
        given = resolve(budget.shapes, self.allocation) if isinstance(self.allocation, Mapping) else None
        sizes = by_component(budget.sizes)
        totals = whole({name: budget.total * size / budget.size for name, size in sizes.items()}, sizes, budget.total)
        counts: dict[str, int] = {}
        for name, total in totals.items():
            shapes = {path: shape for path, shape in budget.shapes.items() if component_of(path) == name}
            part = replace(budget, shapes=shapes, total=total)
            counts.update(_within(name, part, self.allocation if given is None else _among(given, shapes)))
        return {path: counts[path] for path in budget.shapes}


def _among(given: Densities, shapes: Shapes) -> Densities:
    return {path: density for path, density in given.items() if path in shapes}


def _within(name: str, part: Budget, allocation: Allocation) -> dict[str, int]:
    if part.total < len(part.shapes):
        raise AllocationError(
            f"The share of the component {name!r} is {part.total} of its {part.size} {part.unit}, but each of its "
            f"{len(part.shapes)} layers needs at least one. Lower the sparsity, or spread it over the whole model."
        )
    try:
        return distribute(part, allocation)
    except AllocationError as error:
        raise AllocationError(f"In the component {name!r}: {error}") from error
