"""Which activation a module or function is: known by type, or recognised by what it computes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsity.runtime._operands import Activation

FUNCTIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.NONE: lambda x: x,
    Activation.RELU: torch.relu,
    Activation.RELU6: F.relu6,
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Activation.SIGMOID: torch.sigmoid,
    Activation.TANH: torch.tanh,
    Activation.HARDSWISH: F.hardswish,
}
_FUNCTION_NAMES = {
    "relu": Activation.RELU,
    "relu6": Activation.RELU6,
    "silu": Activation.SILU,
    "sigmoid": Activation.SIGMOID,
    "tanh": Activation.TANH,
    "hardswish": Activation.HARDSWISH,
}
_NAMESPACES = (torch, F, torch.Tensor, operator)


def of_function(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Activation | None:
    """The activation that a call computes of its first argument; None for any other call."""
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if not isinstance(target, str) and not any(getattr(space, name, None) is target for space in _NAMESPACES):
        return None
    if name == "gelu":
        approximate = kwargs.get("approximate", args[1] if len(args) > 1 else "none")
        return Activation.GELU_TANH if approximate == "tanh" else Activation.GELU
    extra = {key: value for key, value in kwargs.items() if key not in ("inplace", "input")}
    return _FUNCTION_NAMES.get(name) if not extra and not any(args[1:]) else None


def of_module(module: nn.Module) -> Activation | None:
    """The activation that a module without any state computes; None for any other module.

    A module counts as one if it agrees with torch's function wherever it is asked, so it does not matter which library
    wrote it.
    """
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return None
    names = " ".join(type(each).__name__.lower() for each in module.modules())
    if not any(part in names for part in ("relu", "silu", "swish", "gelu", "sigmoid", "tanh")):
        return None
    # Two shapes and many values, so that a softmax or a gated unit is not taken for one.
    points = torch.cat([torch.linspace(-9, 9, 289), torch.tensor([-60.0, 60.0, 1e-3])]).view(4, 73)
    for activation, function in FUNCTIONS.items():
        if activation is not Activation.NONE and all(_agree(module, function, x) for x in (points, points[:, :3])):
            return activation
    return None


def _agree(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    try:
        with torch.no_grad():
            got = module(x.clone())
    except Exception:  # a module that wants other inputs is no activation
        return False
    return isinstance(got, Tensor) and got.shape == x.shape and torch.allclose(got, function(x), rtol=1e-6, atol=1e-6)
