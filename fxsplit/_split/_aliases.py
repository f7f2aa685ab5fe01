"""Which operations write to their argument and which may return a view of it, read off PyTorch's own schemas."""

from __future__ import annotations

import inspect
from functools import cache

import torch
from torch import fx, nn

from fxsplit._graph import fetch, is_getter, is_size, is_tensor, target_name

# Return their argument itself under some condition (dtype already right, evaluation mode) that no schema mentions.
_MAYBE_IDENTITY = frozenset(
    [
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "alpha_dropout",
        "feature_dropout",
        "feature_alpha_dropout",
        "type",
        "type_as",
        "float",
        "double",
        "half",
        "bfloat16",
        "int",
        "long",
        "bool",
        "cuda",
        "cpu",
        "requires_grad_",
        "pad",
        "expand_as",
        "broadcast_tensors",
        "atleast_1d",
        "atleast_2d",
        "atleast_3d",
        "checkpoint",
    ]
)
_OPERATORS = frozenset(
    [
        "__iadd__",
        "__isub__",
        "__imul__",
        "__itruediv__",
        "__ifloordiv__",
        "__imod__",
        "__ipow__",
        "__iand__",
        "__ior__",
        "__ixor__",
        "iadd",
        "isub",
        "imul",
        "itruediv",
        "ifloordiv",
        "imod",
        "ipow",
        "iand",
        "ior",
        "ixor",
    ]
)
_ITEM_WRITES = frozenset({"setitem", "__setitem__"})

# Their result is always new memory, unless `inplace` is set.
_FRESH_MODULES = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.Tanh,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Softplus,
    nn.Softmax,
    nn.LogSoftmax,
    nn.PReLU,
    nn.RNNBase,
)


def written_argument(root: nn.Module, node: fx.Node) -> fx.Node | None:
    """The argument that a node overwrites in place, if it does.

    Args:
        root: Holds the modules that the graph calls.
        node: Any node.
    """
    first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    if node.op == "call_module":
        return first if isinstance(first, fx.Node) and _module_writes(fetch(root, str(node.target))) else None
    if node.op not in ("call_function", "call_method"):
        return None
    out = node.kwargs.get("out")
    if isinstance(out, fx.Node):
        return out
    name = target_name(node)
    writes = name in _OPERATORS or name in _ITEM_WRITES or _is_inplace_name(name) or _inplace_requested(node)
    return first if writes and isinstance(first, fx.Node) else None


def returns_argument(root: nn.Module, node: fx.Node) -> fx.Node | None:
    """The argument that a node overwrites and then returns as the very same tensor, if it does."""
    if target_name(node) in _ITEM_WRITES or node.kwargs.get("out") is not None or not is_tensor(node):
        return None
    if node.op == "call_module" and not getattr(fetch(root, str(node.target)), "inplace", False):
        return None
    return written_argument(root, node)


def viewed_arguments(root: nn.Module, node: fx.Node) -> tuple[fx.Node, ...]:
    """Arguments whose memory a node's value may share. Unknown modules may return their input; known ones don't."""
    tensors = tuple(node.all_input_nodes)
    if node.op == "call_module":
        module = fetch(root, str(node.target))
        fresh = isinstance(module, _FRESH_MODULES) and not getattr(module, "inplace", False)
        return () if fresh else tensors
    if is_size(node) or node.op not in ("call_function", "call_method"):
        return ()
    if is_getter(node) or written_argument(root, node) is not None:
        return tensors[:1]
    name = target_name(node)
    return tensors if name in _MAYBE_IDENTITY or _returns_view(name) or not _is_known(name) else ()


def is_pure_view(node: fx.Node) -> bool:
    """Whether a node only looks at its argument's memory in another form, so that it can be repeated at no cost."""
    if not is_tensor(node) or node.op not in ("call_function", "call_method"):
        return False
    name = target_name(node)
    return is_getter(node) or (_returns_view(name) and not _is_inplace_name(name))


def _module_writes(module: nn.Module) -> bool:
    if getattr(module, "inplace", False):
        return True
    # A leaf that normalises or convolves first gives its in-place activation new memory to work on.
    opens_fresh = isinstance(module, _FRESH_MODULES)
    return not opens_fresh and any(getattr(child, "inplace", False) for child in module.modules())


def _is_inplace_name(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__") and name != "requires_grad_"


def _inplace_requested(node: fx.Node) -> bool:
    if "inplace" in node.kwargs:
        return node.kwargs["inplace"] is not False
    if node.op != "call_function":
        return False
    position = _inplace_position(node.target)
    return position is not None and position < len(node.args) and node.args[position] is not False


@cache
def _inplace_position(function: object) -> int | None:
    try:
        names = list(inspect.signature(function).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


@cache
def _schemas(name: str) -> tuple[torch.FunctionSchema, ...]:
    return tuple(torch._C._jit_get_schemas_for_operator(f"aten::{name}"))


def _is_known(name: str) -> bool:
    return bool(_schemas(name)) or hasattr(torch.nn.functional, name) or hasattr(torch, name)


@cache
def _returns_view(name: str) -> bool:
    return any(
        value.alias_info is not None and not value.alias_info.is_write
        for schema in _schemas(name)
        for value in schema.returns
    )
