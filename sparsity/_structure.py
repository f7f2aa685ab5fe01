"""What a pattern of masks has to tell, and the one without a pattern: single weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sparsity._allocation import Allocation, allocate
from sparsity._budget import Shapes
from sparsity._errors import MaskError
from sparsity._select import is_conv1d
from sparsity._smallest import smallest
from sparsity._subset import random_subset


@dataclass(frozen=True)
class Geometry:
    """The shape of a weight and what it means.

    Attributes:
        shape: Shape of the weight.
        inputs: The dimension that runs over inputs, 0 or 1; the other of the two runs over outputs.
        fan: Number of inputs that one output has along it.
    """

    shape: tuple[int, ...]
    inputs: int
    fan: int

    @property
    def oriented(self) -> tuple[int, ...]:
        """The shape with outputs first and inputs second."""
        first, second, *kernel = self.shape
        return self.shape if self.inputs == 1 else (second, first, *kernel)


def geometry(module: nn.Module, shape: Sequence[int]) -> Geometry:
    """Return what the dimensions of a weight of ``module`` mean; inputs are dimension 1 in most kinds of layers."""
    if isinstance(module, _ConvNd) and module.transposed:
        return Geometry(tuple(shape), 0, shape[0] // module.groups)
    inputs = 0 if is_conv1d(module) else 1
    return Geometry(tuple(shape), inputs, shape[inputs])


def oriented(tensor: Tensor, weight: Geometry) -> Tensor:
    """Turn a tensor of the weight's shape so that its first two dimensions are outputs and inputs, or turn it back."""
    return tensor if weight.inputs == 1 else tensor.transpose(0, 1)


def is_size(value: object) -> bool:
    """Tell whether ``value`` is a positive int."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class Structure(ABC):
    """A pattern of masks for `sparsify`; see `NM` and `Blocks`, or write one."""

    @abstractmethod
    def misfit(self, weight: Geometry) -> str | None:
        """Return why a weight can't have this structure, or None if it can."""

    @abstractmethod
    def counts(self, shapes: Shapes, sparsity: float, allocation: Allocation) -> dict[str, int]:
        """Return the number of nonzeros of each weight."""

    @abstractmethod
    def draw(self, weight: Geometry, nonzeros: int, generator: torch.Generator) -> Tensor:
        """Return a random bool mask of the weight's shape, on the CPU."""

    def best(self, weight: Geometry, nonzeros: int, scores: Tensor) -> Tensor:
        """Return the bool mask of the weight's shape that keeps the largest sum of scores; of equal ones the first.

        Args:
            weight: The weight.
            nonzeros: Number of nonzeros.
            scores: On the CPU, of the weight's shape, not NaN.

        Raises:
            MaskError: The structure does not say how.
        """
        raise MaskError(f"{self} has no method best, so weights can't be chosen by scores. Write one, or use sparsify.")

    def misfits(self, path: str, module: nn.Module, parameter: nn.Parameter) -> bool:
        """Tell whether a weight can't have this structure, to leave it dense with ``skip``."""
        return parameter.ndim < 2 or self.misfit(geometry(module, parameter.shape)) is not None


@dataclass(frozen=True)
class Unstructured(Structure):
    """Single weights, each set of them equally likely."""

    def misfit(self, weight: Geometry) -> str | None:
        """Return None."""
        return None

    def counts(self, shapes: Shapes, sparsity: float, allocation: Allocation) -> dict[str, int]:
        """Return what the allocation says."""
        return allocate(shapes, sparsity, allocation)

    def draw(self, weight: Geometry, nonzeros: int, generator: torch.Generator) -> Tensor:
        """Return a random mask."""
        return random_subset(math.prod(weight.shape), nonzeros, generator).view(weight.shape)

    def best(self, weight: Geometry, nonzeros: int, scores: Tensor) -> Tensor:
        """Return the largest scores."""
        return smallest(-scores, nonzeros, torch.ones_like(scores, dtype=torch.bool))
