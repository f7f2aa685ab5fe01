"""Densities per layer: uniform, Erdos-Renyi with and without kernel, and exact counts from them."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping

from sparsity._budget import Budget, Exact, Shapes, whole
from sparsity._errors import AllocationError, listed, near_matches
from sparsity._selectors import matches

Densities = Mapping[str, float]
Allocation = str | Densities | Callable[[Shapes, float], Densities]


def uniform(shapes: Shapes, density: float) -> dict[str, float]:
    """Give every layer the same density."""
    return dict.fromkeys(shapes, density)


def er(shapes: Shapes, density: float) -> dict[str, float]:
    """Erdos-Renyi densities, proportional to (n_out + n_in) / (n_out n_in) (Mocanu et al. 2018, eq. 1).

    The kernel of a convolution is ignored. Layers that would exceed density 1 are dense, and the others share the
    rest in the same proportions.
    """
    return _proportional(shapes, density, lambda shape: sum(shape[:2]) / math.prod(shape[:2]))


def erk(shapes: Shapes, density: float) -> dict[str, float]:
    """Erdos-Renyi-Kernel densities, proportional to sum(shape) / prod(shape) (Evci et al. 2020, sec. 3).

    For a linear layer this is (n_out + n_in) / (n_out n_in), for a convolution
    (n_out + n_in + k_h + k_w) / (n_out n_in k_h k_w), in terms of the weight's own shape, so a grouped convolution
    counts the inputs of one group. Layers that would exceed density 1 are dense, and the others share the rest in
    the same proportions.

    Example:
        >>> erk({"a": (2, 2), "b": (10, 10)}, density=24 / 104)
        {'a': 1.0, 'b': 0.2}
    """
    return _proportional(shapes, density, lambda shape: sum(shape) / math.prod(shape))


NAMED: dict[str, Callable[[Shapes, float], Densities]] = {"erk": erk, "er": er, "uniform": uniform}


def check_sparsity(sparsity: float) -> float:
    """Return ``sparsity`` as a float.

    Raises:
        AllocationError: It is not a number in [0, 1).
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, numbers.Real):
        raise AllocationError(
            f"sparsity is the share of weights that are zero, a number in [0, 1), got {sparsity!r} "
            f"of type {type(sparsity).__name__}."
        )
    if not 0 <= sparsity < 1:  # also catches NaN
        hint = " A percentage has to be divided by 100." if 1 < sparsity <= 100 else ""
        raise AllocationError(f"sparsity is the share of weights that are zero, in [0, 1), got {sparsity!r}.{hint}")
    return float(sparsity)


def allocate(shapes: Shapes, sparsity: float, allocation: Allocation = "erk", block: int = 1) -> dict[str, int]:
    """Return the number of nonzeros of each layer; they add up to round((1 - sparsity) * total size) exactly.

    Args:
        shapes: Shape of each weight by path, not empty.
        sparsity: Share of zeros over all weights together, in [0, 1).
        allocation: ``'erk'``, ``'er'``, ``'uniform'``; a dict of densities by path (or glob), the weights that it
            leaves out sharing the rest by ERK; a callable ``(shapes, density) -> {path: density}``; or `per_component`
            of one of these.
        block: Number of weights that are active or not together. The numbers returned are multiples of it, and add up
            to ``block * round((1 - sparsity) * total size / block)``.

    Raises:
        AllocationError: The sparsity or the allocation is invalid, or they contradict each other; or ``block`` does not
            divide the size of a weight.

    Example:
        >>> allocate({"a": (4, 10), "b": (10, 10)}, sparsity=0.9, allocation="uniform")
        {'a': 4, 'b': 10}
    """
    density = 1 - check_sparsity(sparsity)
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise AllocationError(f"block is a number of weights, got {block!r}.")
    odd = [path for path, shape in shapes.items() if math.prod(shape) % block]
    if odd:
        raise AllocationError(f"The sizes of {listed(odd)} are no multiples of a block of {block} weights.")
    size = Budget(shapes, 0, block).size
    budget = Budget(shapes, round(density * size), block)
    if budget.total < len(shapes):
        raise AllocationError(
            f"sparsity {sparsity} leaves {budget.total} of {size} {budget.unit}, but each of the {len(shapes)} layers "
            f"needs at least one. Use a sparsity of at most {1 - len(shapes) / size:.6f}."
        )
    return {path: count * block for path, count in distribute(budget, allocation).items()}


def distribute(budget: Budget, allocation: Allocation) -> dict[str, int]:
    """Return the number of active blocks of each weight; they add up to the total exactly.

    Raises:
        AllocationError: The allocation is invalid or can't be met.
    """
    if isinstance(allocation, Exact):
        return allocation.counts(budget)
    sizes = budget.sizes
    quotas = {path: share * sizes[path] for path, share in _densities(budget, allocation).items()}
    return whole(quotas, sizes, budget.total)


def check_allocation(allocation: Allocation) -> None:
    """Check what can be checked of an allocation before the weights are known.

    Raises:
        AllocationError: It is of no kind that is known, or has an unknown name.
    """
    if isinstance(allocation, str) and allocation not in NAMED:
        raise AllocationError(
            f"Unknown allocation {allocation!r}; known are {listed(NAMED)}, a dict of densities by path, or a "
            f"callable.{near_matches(allocation, NAMED)}"
        )
    if not (isinstance(allocation, (str, Mapping)) or callable(allocation)):
        raise AllocationError(
            f"allocation is one of {listed(NAMED)}, a dict of densities by path, or a callable, "
            f"got {allocation!r} of type {type(allocation).__name__}."
        )


def _densities(budget: Budget, allocation: Allocation) -> Densities:
    check_allocation(allocation)
    density, shapes = budget.total / budget.size, budget.shapes
    if isinstance(allocation, str):
        return NAMED[allocation](shapes, density)
    if isinstance(allocation, Mapping):
        return _fill(budget, resolve(shapes, allocation))
    result = allocation(shapes, density)
    if not isinstance(result, Mapping) or set(result) != set(shapes):
        raise AllocationError(
            "The allocation callable has to return a dict with the density of each of the weights "
            f"{listed(shapes)}, got {listed(result) if isinstance(result, Mapping) else repr(result)}."
        )
    return _fill(budget, {path: _checked_density(path, result[path]) for path in shapes})


def resolve(shapes: Shapes, allocation: Densities) -> dict[str, float]:
    """Expand the user's paths and globs to one density per weight.

    Raises:
        AllocationError: One of them names no weight, or a weight that another one names; or a density is wrong.
    """
    given: dict[str, float] = {}
    for pattern, density in allocation.items():
        hits = [path for path in shapes if matches(str(pattern), path)]
        if not hits:
            raise AllocationError(
                f"The allocation names {pattern!r}, but no masked weight has this path or lies in a module of this "
                f"path.{near_matches(str(pattern), shapes)}"
            )
        twice = [path for path in hits if path in given]
        if twice:
            raise AllocationError(f"The allocation gives {twice[0]!r} a density twice, the second time by {pattern!r}.")
        given.update(dict.fromkeys(hits, _checked_density(str(pattern), density)))
    return given


def _checked_density(path: str, density: float) -> float:
    if isinstance(density, bool) or not isinstance(density, numbers.Real) or not 0 < density <= 1:
        raise AllocationError(f"The density of {path!r} is the share of weights it keeps, in (0, 1], got {density!r}.")
    return float(density)


def _fill(budget: Budget, given: Densities) -> dict[str, float]:
    """Let the weights without a given density share the rest by ERK, so that the total is met."""
    sizes, total = budget.sizes, budget.total
    fixed = sum(density * sizes[path] for path, density in given.items())
    rest = {path: shape for path, shape in budget.shapes.items() if path not in given}
    room = sum(sizes[path] for path in rest)
    if not rest and abs(fixed - total) > 1:
        raise AllocationError(
            f"These densities amount to {fixed:.0f} of {budget.size} {budget.unit}, a sparsity of "
            f"{1 - fixed / budget.size:.6f}, but {total} were asked for. Pass that sparsity, or leave out the "
            "layers that should share the rest."
        )
    if rest and not len(rest) <= total - fixed <= room:
        raise AllocationError(
            f"The given densities take {fixed:.0f} of {total} active {budget.unit}; the other {len(rest)} layers would "
            f"have to hold {total - fixed:.0f}, but can hold {len(rest)} to {room}. Change the densities or the "
            "sparsity."
        )
    return {**given, **(erk(rest, (total - fixed) / room) if rest else {})}


def _proportional(shapes: Shapes, density: float, score: Callable[[tuple[int, ...]], float]) -> dict[str, float]:
    """Densities min(1, scale * score) with the one scale that meets ``density`` over all layers.

    A larger scale saturates layers in the order of their scores, so saturating the layers found so far and solving
    for the scale of the rest again only ever adds layers, and stops at the solution.
    """
    scores = {path: score(tuple(shape)) for path, shape in shapes.items()}
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    budget = density * sum(sizes.values())
    open_ = sorted(shapes, key=scores.__getitem__)
    scale = math.inf
    while open_:
        scale = budget / sum(scores[path] * sizes[path] for path in open_)
        saturated = [path for path in open_ if scale * scores[path] >= 1]
        if not saturated:
            break
        budget -= sum(sizes[path] for path in saturated)
        open_ = [path for path in open_ if scale * scores[path] < 1]
    shared = set(open_)
    return {path: scale * scores[path] if path in shared else 1.0 for path in shapes}
