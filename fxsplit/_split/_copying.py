"""Builds the trunk and the heads as graph modules on copies of the original's modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from fxsplit._errors import SplitError
from fxsplit._graph import fetch
from fxsplit._parametrized import copy_apart

Memo = dict[int, Any]


def copy_values(root: nn.Module, nodes: Iterable[fx.Node], memo: Memo) -> dict[str, Any]:
    """Deep-copy what nodes refer to, all with one memo, so that ties among them survive.

    Args:
        root: Holds the originals.
        nodes: Of one side of the cut.
        memo: Replacements by the identity of the original, which are then not copied; filled with the copies made.

    Raises:
        SplitError: A module cannot be copied.
    """
    targets = dict.fromkeys(str(node.target) for node in nodes if node.op in ("call_module", "get_attr"))
    return {target: _copied(fetch(root, target), target, memo) for target in targets}


def _copied(value: Any, target: str, memo: Memo) -> Any:
    try:
        return copy_apart(value, memo)
    except Exception as error:
        raise SplitError(
            f"{target!r} cannot be copied into a head: {type(error).__name__}: {error} "
            "copy.deepcopy(model) has to work."
        ) from error


def assemble(name: str, graph: fx.Graph, values: Mapping[str, Any], root: nn.Module) -> fx.GraphModule:
    """A graph module with ``values`` under their original paths.

    Args:
        name: Class name of the module, for printing.
        graph: What it computes.
        values: Modules, tensors and constants by path.
        root: The original, whose containers' training flags and persistence of buffers are taken over.
    """
    module = fx.GraphModule(nn.Module(), fx.Graph(), class_name=name)
    module.training = root.training
    for target in sorted(values, key=lambda t: t.count(".")):
        _attach(module, target, values[target], root)
    module.graph = graph
    return module


def _attach(module: nn.Module, target: str, value: Any, original: nn.Module) -> None:
    *containers, name = target.split(".")
    for container in containers:
        original = getattr(original, container)
        if not hasattr(module, container):
            child = nn.Module()
            child.training = original.training
            module.add_module(container, child)
        module = getattr(module, container)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(name, value, persistent=name not in original._non_persistent_buffers_set)
    else:
        setattr(module, name, value)
