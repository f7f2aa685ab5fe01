"""N:M sparsity: exactly N of every M consecutive inputs are active."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsity._allocation import Allocation
from sparsity._budget import Shapes
from sparsity._errors import AllocationError, MaskError
from sparsity._structure import Geometry, Structure, is_size, oriented


@dataclass(frozen=True)
class NM(Structure):
    """Exactly ``n`` of every ``m`` consecutive inputs are active (N:M sparsity, Zhou et al. 2021; 2:4 of NVIDIA GPUs).

    Groups lie along the inputs of a linear layer, and along the input channels of a convolution, at each position of
    the kernel by itself: dimension 1 of the weight, or 0 in ``ConvTranspose`` and transformers' ``Conv1D``. In each
    group every choice of ``n`` is equally likely. Each layer has the density n / m, so `sparsify` takes no other
    sparsity than 1 - n / m, and no allocation. Inputs (of one group of a grouped convolution) have to be a multiple of
    ``m``.

    Args:
        n: Number of active weights in a group, at least 1.
        m: Size of a group, greater than ``n``.

    Raises:
        MaskError: ``n`` and ``m`` are not such numbers.

    Example:
        >>> import sparsity
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 16, 3))
        >>> nm = sparsity.NM(2, 4)
        >>> masks = sparsity.sparsify(net, 0.5, skip=nm.misfits, structure=nm)
        >>> masks["1.weight"].view(16, 2, 4, 3, 3).sum(2).unique()
        tensor([2])
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not (is_size(self.n) and is_size(self.m) and self.n < self.m):
            raise MaskError(f"NM(n, m) keeps n of m weights, two ints with 0 < n < m, got n={self.n!r}, m={self.m!r}.")

    def misfit(self, weight: Geometry) -> str | None:
        """Return why a weight can't have this structure, or None if it can."""
        return f"{weight.fan} inputs are no multiple of {self.m}" if weight.fan % self.m else None

    def counts(self, shapes: Shapes, sparsity: float, allocation: Allocation) -> dict[str, int]:
        """Return n / m of each weight.

        Raises:
            AllocationError: The sparsity is another, or there is an allocation of another kind.
        """
        if not math.isclose(sparsity, 1 - self.n / self.m, abs_tol=1e-6):
            raise AllocationError(
                f"{self} is a sparsity of {1 - self.n / self.m:.6g} in every layer, but {sparsity} was asked for. Pass "
                f"sparsity=1 - {self.n} / {self.m}, or another structure."
            )
        if not isinstance(allocation, str) or allocation not in ("erk", "uniform"):
            raise AllocationError(
                f"{self} is the same density in every layer, so there is nothing to allocate: leave out "
                f"allocation={allocation!r}."
            )
        return {path: math.prod(shape) // self.m * self.n for path, shape in shapes.items()}

    def draw(self, weight: Geometry, nonzeros: int, generator: torch.Generator) -> Tensor:
        """Return a random mask."""
        outputs, inputs, *kernel = weight.oriented
        # The order of independent random numbers is a random permutation, of which n entries are below n.
        groups = (outputs, *kernel, inputs // self.m, self.m)
        order = torch.rand(groups, generator=generator, dtype=torch.float64).argsort(-1)
        return oriented((order < self.n).flatten(-2).movedim(-1, 1), weight)

    def best(self, weight: Geometry, nonzeros: int, scores: Tensor) -> Tensor:
        """Return the ``n`` largest scores of each group."""
        groups = oriented(scores, weight).movedim(1, -1).unflatten(-1, (-1, self.m))
        ranks = groups.sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
        return oriented((ranks < self.n).flatten(-2).movedim(-1, 1), weight)
