"""Modules whose weights are computed from other parameters, by parametrizations or by hooks, and copies of them.

torch keeps the properties of parametrized weights in a class that a module shares with its deep copies, and the key of
its cache (`torch.nn.utils.parametrize.cached`) with them. The older weight_norm and spectral_norm leave the weight that
they computed last on the module, where it stops ``copy.deepcopy``. Copies made here have neither problem.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

Hook = WeightNorm | SpectralNorm


def parametrized_names(module: nn.Module) -> list[str]:
    """Names of the tensors of ``module`` that parametrizations compute."""
    return list(module.parametrizations) if parametrize.is_parametrized(module) else []  # type: ignore[arg-type]


def parametrized_tensors(root: nn.Module) -> list[str]:
    """Paths of all tensors in ``root`` that parametrizations compute: ``'heads.0.fc.weight'``."""
    return [
        f"{path}.{name}" if path else name
        for path, module in root.named_modules(remove_duplicate=False)
        for name in parametrized_names(module)
    ]


def unparametrized_class(module: nn.Module) -> type[nn.Module]:
    """The class that ``module`` had before its first parametrization."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def own_children(module: nn.Module) -> Iterator[nn.Module]:
    """The children of ``module``, without the container of its parametrizations."""
    hidden = module._modules.get("parametrizations") if parametrize.is_parametrized(module) else None
    return (child for child in module.children() if child is not hidden)


def norm_hooks(module: nn.Module) -> list[Hook]:
    """The hooks of `torch.nn.utils.weight_norm` and `torch.nn.utils.spectral_norm` on ``module``."""
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, (WeightNorm, SpectralNorm))]


def separate(root: nn.Module) -> None:
    """Give every parametrized module in ``root`` a class of its own, so that changing it changes no copy of it."""
    for module in root.modules():
        names = parametrized_names(module)
        if not names:
            continue
        shared = type(module)
        members = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
        # The properties hold the module that they were made for, and look up its weights in the cache.
        module.__class__ = type(shared.__name__, shared.__bases__, {k: v for k, v in members.items() if k not in names})  # pyright: ignore
        for name in names:
            parametrize._inject_property(module, name)


def copy_apart(value: Any, memo: dict[int, Any]) -> Any:
    """``copy.deepcopy`` that leaves nothing in common between a module and its copy.

    Args:
        value: Module or tensor.
        memo: As for ``copy.deepcopy``.
    """
    if not isinstance(value, nn.Module):
        return copy.deepcopy(value, memo)
    hold_computed(value, memo)
    copied = copy.deepcopy(value, memo)
    settle_copy(copied)
    return copied


def hold_computed(root: nn.Module, memo: dict[int, Any]) -> None:
    """Enter into ``memo`` what stands for the tensors on modules that autograd computed: ``deepcopy`` refuses them."""
    for module in root.modules():
        for value in vars(module).values():
            for each in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(each, Tensor) and not each.is_leaf:
                    memo.setdefault(id(each), each.detach().clone())


def settle_copy(root: nn.Module) -> None:
    """Finish a deep copy: classes of its own, and weights computed from its own parameters."""
    separate(root)
    for module in root.modules():
        for hook in norm_hooks(module):
            with torch.no_grad():
                setattr(module, hook.name, computed_weight(module, hook))


def computed_weight(module: nn.Module, hook: Hook) -> Tensor:
    """The weight that ``hook`` computes; what it keeps on the module stays as it is."""
    if isinstance(hook, WeightNorm):
        return hook.compute_weight(module)
    return hook.compute_weight(module, do_power_iteration=False)
