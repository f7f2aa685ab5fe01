"""How long a layer takes, by arithmetic: the model of costs behind choices that are not measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

_SPEED = {"avx512": 1.0, "avx2": 0.75, "portable": 0.35}
"""Of an instruction set against AVX-512."""
_SPARSE_FLOPS = 120e9
_DENSE_FLOPS = 210e9
_PACKED_FLOATS = 5e9
_NONZERO_SECONDS = 0.42e-9
_DENSE_WEIGHT_SECONDS = 0.14e-9
_SPARSE_CALL = 1e-6
_DENSE_CALL = 8e-6
_FULL_TILE = 48


@dataclass(frozen=True)
class Work:
    """The size of one layer's work.

    Attributes:
        kind: ``'conv2d'`` or ``'linear'``.
        shape: Shape of the weight.
        nonzeros: Number of weights that are not zero.
        pixels: Output pixels or rows that each weight is used for, over the whole batch.
        inputs: Floats that the layer reads, over the whole batch.
        stride: Stride of a convolution.
        size: Height and width of the input of a convolution.
        groups: Groups of a convolution.
    """

    kind: str
    shape: tuple[int, ...]
    nonzeros: int
    pixels: int
    inputs: int
    stride: tuple[int, int] = (1, 1)
    size: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def total(self) -> int:
        """Number of weights, zero or not."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Share of weights that are not zero."""
        return self.nonzeros / self.total


def sparse_seconds(work: Work, isa: str) -> float:
    """Predicted seconds in the sparse kernel on one thread.

    Each nonzero is read once per tile of pixels and multiplied with the tile; before, the input is packed, once for
    each column of the window.
    """
    speed = _SPEED.get(isa, 0.35)
    columns = work.shape[3] if work.kind == "conv2d" else 1
    multiply = 2 * work.nonzeros * work.pixels / (_SPARSE_FLOPS * speed)
    stream = _NONZERO_SECONDS * work.nonzeros * math.ceil(work.pixels / _FULL_TILE) ** 0.0
    pack = columns * work.inputs / (_PACKED_FLOATS * speed)
    return _SPARSE_CALL + max(multiply, stream) + pack


def dense_seconds(work: Work, isa: str) -> float:
    """Predicted seconds in torch on one thread: multiplications, or reading the weights where there are few pixels."""
    speed = _SPEED.get(isa, 0.35)
    multiply = 2 * work.total * work.pixels / (_DENSE_FLOPS * speed)
    return _DENSE_CALL + max(multiply, _DENSE_WEIGHT_SECONDS * work.total)
