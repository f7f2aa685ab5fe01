"""FLOPs of one training step per sample, by the convention of RigL (Evci et al. 2020, app. H).

The backward pass costs twice the forward pass: gradients with respect to the activations and to the weights. ``dense``
and ``sparse`` are the FLOPs of the forward pass of the dense and of the masked network.
"""

from __future__ import annotations


def dense_training_flops(dense: float) -> float:
    """Dense training: 3 f_D."""
    return 3 * dense


def sparse_training_flops(sparse: float) -> float:
    """Training with fixed masks, or with updates that need no dense gradient (static, SET): 3 f_S."""
    return 3 * sparse


def rigl_training_flops(sparse: float, dense: float, every: int) -> float:
    """RigL, on average over steps: (3 f_S dT + 2 f_S + f_D) / (dT + 1).

    In one of ``every`` + 1 steps the gradient of the weights is dense, which costs f_D instead of f_S.

    Example:
        >>> rigl_training_flops(sparse=1.0, dense=5.0, every=3)
        4.0
    """
    return (3 * sparse * every + 2 * sparse + dense) / (every + 1)
