"""Parameters by the name they had before parametrization, and the masks on them, recognised by duck typing."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm

from fxsplit._parametrized import norm_hooks

_PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.([^.]+)\.original$")


def plain_name(name: str) -> str:
    """Undo the renaming by torch: ``'fc.parametrizations.weight.original'`` is ``'fc.weight'``.

    Where a weight is computed from several parameters, none of them can take its name.
    """
    return _PARAMETRIZED.sub(r"\1\2", name)


def raw_parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    """The stored parameter behind ``module.<name>``, without computing it; None if there is none.

    Of several (the magnitude and the direction of weight_norm) it is the largest, which has the shape of the weight.
    """
    parametrizations = getattr(module, "parametrizations", None)
    if isinstance(parametrizations, nn.ModuleDict) and name in parametrizations:
        return stored_parameter(parametrizations[name])
    hooked = next((hook for hook in norm_hooks(module) if hook.name == name), None)
    if hooked is not None:
        return module._parameters[f"{name}_v" if isinstance(hooked, WeightNorm) else f"{name}_orig"]
    return module._parameters.get(name)


def stored_parameter(chain: nn.Module) -> nn.Parameter | None:
    """The largest of the parameters that a list of parametrizations computes from."""
    return max(chain.parameters(recurse=False), key=lambda parameter: parameter.numel(), default=None)


def parameter_names(root: nn.Module) -> dict[int, str]:
    """``{id(parameter): its first path in root}``, so that tied and shared parameters have one name."""
    return {id(parameter): plain_name(name) for name, parameter in root.named_parameters()}


def find_masks(root: nn.Module) -> dict[str, Tensor]:
    """Bool masks by weight path: a parametrization with a bool buffer ``mask`` counts, whoever put it there."""
    masks: dict[str, Tensor] = {}
    for path, module in root.named_modules():
        parametrizations = getattr(module, "parametrizations", None)
        if not isinstance(parametrizations, nn.ModuleDict):
            continue
        for name, steps in parametrizations.items():
            for step in steps.children():
                mask = getattr(step, "mask", None)
                if isinstance(mask, Tensor) and mask.dtype is torch.bool:
                    masks[f"{path}.{name}" if path else name] = mask
    return masks
