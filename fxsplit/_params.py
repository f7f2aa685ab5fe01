"""Parameters by the name they had before parametrization, and the masks on them, recognised by duck typing."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

_PARAMETRIZED = re.compile(r"(^|\.)parametrizations\.([^.]+)\.original\d*$")


def plain_name(name: str) -> str:
    """Undo the renaming by torch: ``'fc.parametrizations.weight.original'`` is ``'fc.weight'``."""
    return _PARAMETRIZED.sub(r"\1\2", name)


def raw_parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    """The stored parameter behind ``module.<name>``, without computing its parametrization; None if there is none."""
    parametrizations = getattr(module, "parametrizations", None)
    if isinstance(parametrizations, nn.ModuleDict) and name in parametrizations:
        return getattr(parametrizations[name], "original", None)
    return module._parameters.get(name)


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
