"""The initialisers a model brings along: factory, transformers' config init, init_weights, reset_parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fxsplit._errors import SplitError, near_matches
from fxsplit._init._replica import slots_of

FACTORY = "factory"
CONFIG_INIT = "config init"
INIT_WEIGHTS = "init_weights"
CREATED = "create_model"
RESET = "reset_parameters"

Factory = Callable[[], nn.Module]


def values_of(model: nn.Module, like: Mapping[str, Tensor], made_by: str) -> dict[str, Tensor]:
    """Return the tensors of a newly made model at the paths of ``like``, with the dtypes and devices found there.

    Raises:
        SplitError: If the model lacks a path, or its tensor has another shape.
    """
    if not isinstance(model, nn.Module):
        raise SplitError(f"{made_by} returned {type(model).__name__}, expected an nn.Module")
    found = {slot.path: tensor.detach() for slot, tensor in slots_of(model)}
    values: dict[str, Tensor] = {}
    moved: dict[int, Tensor] = {}
    for path, expected in like.items():
        if path not in found:
            raise SplitError(
                f"the model made by {made_by} has no '{path}': it must have the architecture of the model that is "
                f"split.{near_matches(path, found)}"
            )
        if found[path].shape != expected.shape:
            raise SplitError(
                f"'{path}' of the model made by {made_by} has shape {tuple(found[path].shape)}, "
                f"expected {tuple(expected.shape)}"
            )
        # One new tensor per tensor of the source keeps tied weights tied.
        if id(expected) not in moved:
            moved[id(expected)] = found[path].to(device=expected.device, dtype=expected.dtype)
        values[path] = moved[id(expected)]
    return values


def is_pretrained_model(module: nn.Module) -> bool:
    """Whether a module is a transformers model, asked without importing transformers."""
    return any(
        c.__name__ == "PreTrainedModel" and c.__module__.startswith("transformers.") for c in type(module).__mro__
    )


def model_initialisers(model: nn.Module) -> list[tuple[str, str]]:
    """Return (path, rule) of the outermost modules that can initialise everything below themselves."""
    if is_pretrained_model(model):
        return [("", CONFIG_INIT)]
    if _callable_without_arguments(getattr(model, "init_weights", None)):
        return [("", INIT_WEIGHTS)]
    found = []
    for name, child in model.named_children():
        found += [(f"{name}.{path}" if path else name, rule) for path, rule in model_initialisers(child)]
    return found


def run_model_initialiser(module: nn.Module, rule: str) -> None:
    """Let a module of a replica draw everything below it anew."""
    if rule == CONFIG_INIT:
        for child in module.modules():
            # transformers sets this mark on modules and tensors it has drawn or loaded, and then skips them.
            child.__dict__.pop("_is_hf_initialized", None)
        module.initialize_weights()  # type: ignore[operator]
    else:
        module.init_weights()  # type: ignore[operator]


def construct_from_config(model: nn.Module) -> nn.Module:
    """Return a new transformers model of the same class and configuration."""
    return type(model)(model.config)  # type: ignore[call-arg,arg-type]


def create_alike(model: nn.Module) -> nn.Module | None:
    """Return a new timm model of the architecture that a timm model says it has; None for others.

    Arguments that its user gave are not known, apart from the number of classes.
    """
    config = getattr(model, "pretrained_cfg", None)
    if not type(model).__module__.startswith("timm.") or not isinstance(config, Mapping):
        return None
    import timm

    try:
        return timm.create_model(config["architecture"], num_classes=model.num_classes)  # type: ignore[arg-type]
    except Exception:
        # Foreign code may fail in any way, for an architecture that somebody registered; other rules remain.
        return None


def fitting(model: nn.Module, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of ``like`` that a model has tensors for, of the same shapes."""
    found = {slot.path: tensor.shape for slot, tensor in slots_of(model)}
    return {path: tensor for path, tensor in like.items() if found.get(path) == tensor.shape}


def reset_of(module: nn.Module) -> Callable[[], object] | None:
    """Return the method that draws a module's own parameters anew, if it has one that needs no arguments."""
    for name in ("reset_parameters", "_reset_parameters"):
        method = getattr(module, name, None)
        if _callable_without_arguments(method):
            return method
    return None


def device_set(tensors: Mapping[str, Tensor]) -> set[torch.device]:
    """Return the devices on which a draw of these tensors may use random numbers."""
    return {tensor.device for tensor in tensors.values()}


def _callable_without_arguments(method: object) -> bool:
    if not callable(method):
        return False
    try:
        inspect.signature(method).bind()
    except (TypeError, ValueError):
        return False
    return True
