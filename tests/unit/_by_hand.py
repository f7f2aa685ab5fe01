"""One small layer with a known mask, weight and gradient."""

from __future__ import annotations

import torch
from torch import nn

import sparsity

MASK = torch.tensor([[True, True, False], [False, True, True]])
WEIGHT = torch.tensor([[3.0, -1.0, 0.0], [0.0, 2.0, -4.0]])
# Of the sum of the outputs times [1, -2] for the input [1, 5, 3].
DENSE = torch.tensor([[1.0, 5.0, 3.0], [-2.0, -10.0, -6.0]])


def layer_by_hand() -> tuple[nn.Linear, sparsity.Masks]:
    """A layer with ``WEIGHT`` under ``MASK``."""
    net = nn.Linear(3, 2, bias=False)
    masks = sparsity.sparsify(net, 1 / 3)
    masks["weight"].copy_(MASK)
    with torch.no_grad():
        masks.weights["weight"].parameter.copy_(WEIGHT)
    return net, masks
