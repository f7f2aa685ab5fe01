"""Grow scores: the inactive weights of largest score are grown."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsity._errors import EngineError
from sparsity._rewire import Layer


def gradient(layer: Layer) -> Tensor:
    """Absolute gradient of the loss, as if the weight were active (RigL, Evci et al. 2020)."""
    if layer.gradient is None:
        raise EngineError("Growing by gradient needs a rule with dense=True.")
    return layer.gradient.abs()


def uniform(layer: Layer) -> Tensor:
    """Uniformly at random (SET, Mocanu et al. 2018)."""
    return torch.rand(layer.mask.shape, generator=layer.generator, device=layer.mask.device)
