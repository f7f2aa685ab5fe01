"""Block sparsity: whole blocks of a weight are active or not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsity._allocation import Allocation, allocate
from sparsity._budget import Shapes
from sparsity._errors import MaskError
from sparsity._smallest import smallest
from sparsity._structure import Geometry, Structure, is_size, oriented
from sparsity._subset import random_subset


@dataclass(frozen=True)
class Blocks(Structure):
    """Blocks of neighbouring weights are active or not as a whole (block sparsity, Narang et al. 2017).

    Block ``(r, c)`` covers r neighbouring outputs and c neighbouring inputs of a linear layer, and of a convolution at
    one position of its kernel; ``(r, c, h, w)`` covers h x w positions too. Outputs are dimension 0 of the weight and
    inputs dimension 1, or the other way round in ``ConvTranspose`` and transformers' ``Conv1D``. A block has to divide
    the weight in every dimension.

    What is exact: the number of active blocks over all layers is ``round((1 - sparsity) * number of blocks)``, so the
    number of nonzeros is off by at most half a block; so is that of each component with `per_component`, up to the
    rounding of largest remainder. Each layer has its share of the allocation rounded to whole blocks, at least one. In
    each layer every choice of as many blocks is equally likely.

    Args:
        shape: Shape of a block.

    Raises:
        MaskError: It is not a tuple of at least two positive ints, or a block is a single weight.

    Example:
        >>> import sparsity
        >>> net = torch.nn.Linear(16, 8)
        >>> mask = sparsity.sparsify(net, 0.75, structure=sparsity.Blocks((2, 4)))["weight"]
        >>> mask.view(4, 2, 4, 4).sum((1, 3)).unique(return_counts=True)
        (tensor([0, 8]), tensor([12,  4]))
    """

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        right = isinstance(self.shape, tuple) and len(self.shape) >= 2 and all(map(is_size, self.shape))
        if not right or self.size == 1:
            raise MaskError(
                "Blocks takes the shape of a block of more than one weight, a tuple of two or more positive ints such "
                f"as (1, 4), got {self.shape!r}."
            )

    @property
    def size(self) -> int:
        """Number of weights of a block."""
        return math.prod(self.shape)

    def misfit(self, weight: Geometry) -> str | None:
        """Return why a weight can't have this structure, or None if it can."""
        shape = weight.oriented
        if len(self.shape) > len(shape):
            return f"it has {len(shape)} dimensions and a block {len(self.shape)}"
        odd = [f"{n} {name}" for n, b, name in zip(shape, self.shape, _names(shape), strict=False) if n % b]
        return f"the block does not divide its {' and '.join(odd)}" if odd else None

    def counts(self, shapes: Shapes, sparsity: float, allocation: Allocation) -> dict[str, int]:
        """Return what the allocation says, in whole blocks."""
        return allocate(shapes, sparsity, allocation, self.size)

    def draw(self, weight: Geometry, nonzeros: int, generator: torch.Generator) -> Tensor:
        """Return a random mask."""
        grid = [n // b for n, b in zip(weight.oriented, self._block(weight), strict=True)]
        return self._spread(random_subset(math.prod(grid), nonzeros // self.size, generator).view(grid), weight)

    def best(self, weight: Geometry, nonzeros: int, scores: Tensor) -> Tensor:
        """Return the blocks with the largest sums of scores."""
        sums = oriented(scores, weight)
        for dimension, size in enumerate(self._block(weight)):
            sums = sums.unflatten(dimension, (-1, size)).sum(dimension + 1)
        chosen = smallest(-sums, nonzeros // self.size, torch.ones_like(sums, dtype=torch.bool))
        return self._spread(chosen, weight)

    def _block(self, weight: Geometry) -> tuple[int, ...]:
        return self.shape + (1,) * (len(weight.shape) - len(self.shape))

    def _spread(self, blocks: Tensor, weight: Geometry) -> Tensor:
        for dimension, repeats in enumerate(self._block(weight)):
            blocks = blocks.repeat_interleave(repeats, dimension)
        return oriented(blocks, weight)


def _names(shape: tuple[int, ...]) -> tuple[str, ...]:
    return ("outputs", "inputs", *("kernel positions" for _ in shape[2:]))
