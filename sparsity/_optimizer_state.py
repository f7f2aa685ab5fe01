"""What an optimizer remembers of a weight: clearing it where the weight is dropped or grown."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsity._bits import fill
from sparsity._errors import SparsityWarning
from sparsity._sharded import local

# Marks the groups whose states are of active weights alone, also in what is saved of them (see `_compact`).
COMPACT = "compact_state"
# States of single weights that an optimizer starts with something else than zero.
_INITIAL: dict[tuple[str, str], Callable[[Mapping[str, Any]], Any]] = {
    ("Adagrad", "sum"): lambda group: group["initial_accumulator_value"],
    ("Rprop", "step_size"): lambda group: group["lr"],
    ("RMSpropTF", "square_avg"): lambda group: 1.0,
}
_CURVATURE = ("d", "t", "old_dirs", "old_stps", "ro", "H_diag", "prev_flat_grad", "prev_loss", "al")


def clear(optimizer: Optimizer, parameter: Tensor, places: Tensor) -> None:
    """Set the state of single weights to what it is at first, at the given places and in place.

    That is every floating-point tensor of the weight's shape, and zero in nearly all optimizers. Numbers, statistics of
    whole rows or columns as of Adafactor, and what is in lists, where preconditioners are kept, which may have the
    shape of a square weight, are no state of single weights and stay.
    """
    shape, places = local(parameter).shape, local(places)
    for name, tensor in state_of(optimizer, parameter).items():
        if isinstance(tensor, Tensor) and local(tensor).shape == shape and tensor.is_floating_point():
            fill(local(tensor), places.to(tensor.device), first_value(optimizer, parameter, name))


def first_value(optimizer: Optimizer, parameter: Tensor, name: str) -> float:
    """Return what the state ``name`` of single weights of ``parameter`` is at first."""
    keeper = keeper_of(optimizer)
    initial = _INITIAL.get((type(keeper).__name__, name))
    return 0.0 if initial is None else float(initial(_group_of(keeper, parameter)))


def forget_curvature(optimizer: Optimizer) -> None:
    """Let LBFGS start anew: what it knows of the loss's curvature is of the weights that were active before."""
    if isinstance(optimizer, torch.optim.LBFGS):
        for state in optimizer.state.values():
            for name in _CURVATURE:
                state.pop(name, None)
            state["n_iter"] = 0


def warn_of_unclear(path: str, parameter: Tensor, state: Mapping[str, Any], optimizer: str) -> bool:
    """Warn, and return True, if the state may hold something of single weights in a form that can't be cleared.

    Quantised states are of this kind, whose code 0 need not mean zero, preconditioners of the weight's size, and
    tensors of its shape in lists.
    """
    unclear = [
        (name, tensor)
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
        and tensor.numel() >= parameter.numel() > 1
        and not (tensor.shape == parameter.shape and tensor.is_floating_point())
    ]
    unclear += [
        (name, tensor)
        for name, several in state.items()
        for tensor in (several if isinstance(several, (list, tuple)) else ())
        if isinstance(tensor, Tensor) and tensor.shape == parameter.shape
    ]
    if unclear:
        name, tensor = unclear[0]
        warnings.warn(
            f"{optimizer} keeps {name!r} of shape {tuple(tensor.shape)}, {tensor.dtype}, for {path!r} of shape "
            f"{tuple(parameter.shape)}, {parameter.dtype}. What it remembers of dropped and grown weights stays; the "
            "weights themselves are exact. Use an optimizer whose states have the weights' shapes to clear it.",
            SparsityWarning,
            stacklevel=3,
        )
    return bool(unclear)


def state_of(optimizer: Optimizer, parameter: Tensor) -> Mapping[str, Any]:
    """Return what ``optimizer`` remembers of ``parameter``, without making an entry for it."""
    return keeper_of(optimizer).state.get(parameter, {})


def keeper_of(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that keeps the states: in a ZeroRedundancyOptimizer, one of this process's share."""
    inside = getattr(optimizer, "optim", None)
    return inside if isinstance(inside, Optimizer) else optimizer


def _group_of(optimizer: Optimizer, parameter: Tensor) -> Mapping[str, Any]:
    return next(group for group in optimizer.param_groups if any(each is parameter for each in group["params"]))
