"""What an optimizer remembers of a weight: clearing it where the weight is dropped or grown."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsity._errors import SparsityWarning
from sparsity._sharded import local


def clear(parameter: Tensor, state: Mapping[str, Any], places: Tensor) -> None:
    """Set the state of single weights to zero at the given places, in place.

    That is every floating-point tensor of the weight's shape. Numbers, and statistics of whole rows or columns as of
    Adafactor, are no state of single weights and stay.
    """
    shape, places = local(parameter).shape, local(places)
    for tensor in state.values():
        if isinstance(tensor, Tensor) and local(tensor).shape == shape and tensor.is_floating_point():
            local(tensor).masked_fill_(places.to(tensor.device), 0)


def warn_of_unclear(path: str, parameter: Tensor, state: Mapping[str, Any], optimizer: str) -> bool:
    """Warn, and return True, if the state may hold something of single weights in a form that can't be cleared.

    Quantised states are of this kind, whose code 0 need not mean zero, and preconditioners of the weight's size.
    """
    unclear = [
        name
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
        and tensor.numel() >= parameter.numel() > 1
        and not (tensor.shape == parameter.shape and tensor.is_floating_point())
    ]
    if unclear:
        name, tensor = unclear[0], state[unclear[0]]
        warnings.warn(
            f"{optimizer} keeps {name!r} of shape {tuple(tensor.shape)}, {tensor.dtype}, for {path!r} of shape "
            f"{tuple(parameter.shape)}, {parameter.dtype}. What it remembers of dropped and grown weights stays; the "
            "weights themselves are exact. Use an optimizer whose states have the weights' shapes to clear it.",
            SparsityWarning,
            stacklevel=3,
        )
    return bool(unclear)


def state_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Mapping[str, Any]:
    """Return what ``optimizer`` remembers of ``parameter``, without making an entry for it."""
    return optimizer.state.get(parameter, {})
