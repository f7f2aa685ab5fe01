"""How long a layer takes, by arithmetic: the model of costs behind choices that are not measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

_SPEED = {"avx512": 1.0, "avx2": 0.75, "portable": 0.35}
"""Of an instruction set against AVX-512, on which the constants below were measured (one core of a Zen 5)."""
_CONV_FLOPS = 190e9
_CONV_NONZERO = 0.25e-9
"""Seconds to read one nonzero and find its input, for each image."""
_CONV_PACKED = 0.28e-9
"""Seconds to pack one float, for each column of the window."""
_CONV_OUTPUT = 0.1e-9
_CONV_ROW = 70e-9
"""Seconds to begin and end one output channel of an image."""
_LINEAR_FLOPS = 70e9
_LINEAR_NONZERO = 0.25e-9
_LINEAR_NONZERO_OF_ROWS = 0.6e-9
"""The same where there is more than one row."""
_LINEAR_PACKED = 0.85e-9
_SPARSE_CALL = 2e-6
_DENSE_CONV_FLOPS = 210e9
_DENSE_CONV_INPUT = 0.45e-9
_DENSE_CONV_CALL = 20e-6
_DENSE_LINEAR_FLOPS = 105e9
_DENSE_LINEAR_WEIGHT = 0.15e-9
"""Seconds to read a weight from memory."""
_DENSE_LINEAR_CALL = 8e-6
_FEW = 16
"""Inputs of one output at which the dense kernel reaches half its speed."""


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
    """Predicted seconds in the sparse kernel on one thread: packing, nonzeros times pixels, writing."""
    speed = _SPEED.get(isa, 0.35)
    if work.kind == "linear":
        each = max(2 * work.pixels / _LINEAR_FLOPS, _LINEAR_NONZERO_OF_ROWS) if work.pixels > 1 else _LINEAR_NONZERO
        pack = 0.0 if work.pixels == 1 else _LINEAR_PACKED * work.inputs
        return _SPARSE_CALL + (work.nonzeros * each + pack) / speed
    images = max(1, work.inputs // (work.shape[1] * work.groups * math.prod(work.size)))
    multiply = work.nonzeros * (2 * work.pixels / _CONV_FLOPS + _CONV_NONZERO * images)
    pack = _CONV_PACKED * work.shape[3] * work.inputs
    write = work.shape[0] * (_CONV_OUTPUT * work.pixels + _CONV_ROW * images)
    return _SPARSE_CALL + (multiply + pack + write) / speed


def dense_seconds(work: Work, isa: str) -> float:
    """Predicted seconds in torch on one thread: multiplications, and reading weights or inputs."""
    speed = _SPEED.get(isa, 0.35)
    operations = 2 * work.total * work.pixels
    if work.kind == "linear":
        return _DENSE_LINEAR_CALL + max(operations / (_DENSE_LINEAR_FLOPS * speed), _DENSE_LINEAR_WEIGHT * work.total)
    few = 1 + _FEW / math.prod(work.shape[1:])
    return _DENSE_CONV_CALL + few * operations / (_DENSE_CONV_FLOPS * speed) + _DENSE_CONV_INPUT * work.inputs
