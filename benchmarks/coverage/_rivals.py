"""Other tracers, each as a function from a model and an example to a graph module."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxsplit._trace._inputs import as_example


def symbolic_trace(model: nn.Module, example: Any) -> nn.Module:
    """torch.fx itself."""
    return fx.symbolic_trace(model)


def feature_tracer(model: nn.Module, example: Any) -> nn.Module:
    """The tracer behind ``create_feature_extractor``, with the modules and functions that timm keeps whole."""
    from timm.layers._fx import get_notrace_functions, get_notrace_modules
    from torchvision.models.feature_extraction import NodePathTracer

    tracer = NodePathTracer(autowrap_functions=get_notrace_functions(), leaf_modules=get_notrace_modules())
    graph = tracer.trace(model)  # which sets the tracer's root
    return fx.GraphModule(tracer.root, graph)


def export(model: nn.Module, example: Any) -> nn.Module:
    """``torch.export`` with a batch that is free wherever the example has it in dimension 0."""
    args, kwargs = as_example(example)
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    spec = pytree.tree_map(lambda leaf: {0: torch.export.Dim.AUTO} if isinstance(leaf, torch.Tensor) else None, bound)
    return torch.export.export(model, args, kwargs, dynamic_shapes=spec, strict=False).module()


RIVALS: dict[str, Callable[[nn.Module, Any], nn.Module]] = {
    "fx.symbolic_trace": symbolic_trace,
    "timm feature tracer": feature_tracer,
    "torch.export": export,
}
