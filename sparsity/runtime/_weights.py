"""Weights as layers use them, and BatchNorm as scale and shift."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def weight_of(module: nn.Module, name: str = "weight") -> Tensor:
    """The value of a weight as the layer's forward reads it, with masks and other parametrizations applied."""
    with torch.no_grad():
        value = getattr(module, name)
    return value.detach()


def detached(value: Any) -> Tensor | None:
    """A tensor without its history; None stays None."""
    return value.detach() if isinstance(value, Tensor) else None


def scale_and_shift(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as ``x * scale + shift``, computed in double and rounded once.

    Example:
        >>> one = torch.ones(1)
        >>> scale_and_shift(one * 2, one * 4, one, one, 0.0)
        (tensor([0.5000]), tensor([0.]))
    """
    inverse = torch.rsqrt(var.double() + eps)
    scale = inverse if weight is None else inverse * weight.double()
    shift = -mean.double() * scale
    shift = shift if bias is None else shift + bias.double()
    return scale.float().detach(), shift.float().detach()
