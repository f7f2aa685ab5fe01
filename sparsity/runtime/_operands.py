"""What the steps of a plan take besides buffers: affines, epilogues, kinds."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from torch import Tensor


class Activation(enum.Enum):
    """An elementwise function at the end of a step."""

    NONE = 0
    RELU = 1
    GELU = 2
    GELU_TANH = 3
    SILU = 4
    SIGMOID = 5
    TANH = 6
    RELU6 = 7
    HARDSWISH = 8


SUPPORTED: frozenset[Activation] = frozenset(Activation)
"""The activations that there are kernels for."""


class PoolKind(enum.Enum):
    """How a pooling window is reduced."""

    MAX = 0
    AVERAGE = 1


@dataclass(frozen=True)
class Affine:
    """``x * scale + shift`` per input channel, then ReLU if ``relu``; applied before any zero padding.

    Args:
        scale: factors, shape ``[C]``; None for ones.
        shift: offsets, shape ``[C]``; None for zeros.
        relu: whether a ReLU follows.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    relu: bool = False


@dataclass(frozen=True)
class Epilogue:
    """What follows the bias of a convolution or linear layer: ``activation(y + residual)``.

    Args:
        activation: the function applied last.
        residual: a buffer of the output's shape that is added first; None for none. It may be the target itself.
    """

    activation: Activation = Activation.NONE
    residual: int | None = None


@dataclass(frozen=True)
class StepInfo:
    """One step of a plan, for reports.

    Args:
        kind: the name of the operation.
        shape: of one sample, ``source -> target``.
        nonzeros: weights that are computed with; 0 where there are none.
        density: nonzeros by the size of the dense weight; 1 where there is none.
        bytes: memory held for the weights.
        flops: two per nonzero and output pixel, per sample.
    """

    kind: str
    shape: str
    nonzeros: int = 0
    density: float = 1.0
    bytes: int = 0
    flops: int = 0
