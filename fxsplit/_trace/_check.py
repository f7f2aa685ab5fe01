"""Refuses models that cannot be traced, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from fxsplit._errors import TraceError, near_matches
from fxsplit._params import find_masks
from fxsplit._trace._detection import refuse_detection
from fxsplit._trace._model import TracedModel

_RESERVED = ("graph", "code", "meta", *(name for name in vars(TracedModel) if not name.startswith("_")))


def check_model(model: Any) -> nn.Module:
    """Return ``model`` if it can be recorded.

    Raises:
        TraceError: it is no module, or of a kind that cannot be recorded.
    """
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise TraceError(f"expected a torch.nn.Module, got {kind}. Wrap the computation in a module.")
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(f"{kind} is a ScriptModule, which has no Python code to run. Pass the original model.")
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise TraceError("the model was wrapped by torch.compile. Trace the original and compile the result.")
    if isinstance(model, fx.GraphModule):
        done = "split already" if {"trunk", "heads", "vote"} <= model._modules.keys() else "a graph already"
        raise TraceError(f"{kind} is {done} (a {type(model).__mro__[1].__name__}). Pass the original model.")
    _check_parts(model)
    refuse_detection(model)
    return model


def _check_parts(model: nn.Module) -> None:
    for path, module in model.named_modules():
        where = f"module {path!r} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(f"{where} is a ScriptModule. Replace it by its Python module.")
        if isinstance(module, torch._dynamo.OptimizedModule):
            raise TraceError(f"{where} was wrapped by torch.compile. Use the module inside it, and compile the result.")
        if module._compiled_call_impl is not None:
            raise TraceError(
                f"{where} was compiled in place by its compile(). Trace it before, and compile the result."
            )
        for name in module._modules if not path else ():
            if name in _RESERVED:
                raise TraceError(f"the model has a submodule {name!r}, a name that traced models use. Rename it.")
    for name in find_masks(model):
        raise TraceError(
            f"{name!r} carries a mask. Fold the masks first (sparsity.fold, or "
            "torch.nn.utils.parametrize.remove_parametrizations); masks belong on the split model."
        )
    devices: dict[torch.device, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise TraceError(f"{name!r} is not initialised yet (a lazy module). Run the model once before tracing it.")
        if tensor.is_inference():
            raise TraceError(
                f"{name!r} was made under torch.inference_mode() and can never be trained. Make the model outside "
                "of it, or pass copy.deepcopy(model), made outside of it."
            )
        devices.setdefault(tensor.device, name)
    if len(devices) > 1:
        found = ", ".join(f"{name!r} on {device}" for device, name in devices.items())
        raise TraceError(f"the model lives on several devices ({found}). Move it to one with model.to(device).")


def check_leaves(model: nn.Module, leaf: Sequence[str]) -> frozenset[str]:
    """Return the paths in ``leaf``.

    Raises:
        TraceError: a path is not one of the model's modules.
    """
    if isinstance(leaf, str):
        raise TraceError(f"leaf takes a sequence of paths, got the string {leaf!r}. Write leaf=[{leaf!r}].")
    paths = {path for path, _ in model.named_modules() if path}
    for path in leaf:
        if path not in paths:
            raise TraceError(f"leaf names {path!r}, which is no module of the model.{near_matches(str(path), paths)}")
    return frozenset(leaf)
