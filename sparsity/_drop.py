"""Drop scores: the active weights of smallest score are dropped."""

from __future__ import annotations

from torch import Tensor

from sparsity._rewire import Layer


def magnitude(layer: Layer) -> Tensor:
    """Absolute value of each weight (Mocanu et al. 2018; Evci et al. 2020)."""
    return layer.weight.abs()
