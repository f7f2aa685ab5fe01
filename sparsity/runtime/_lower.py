"""From the nodes of a flat graph to operations; what no plan can hold stays a node that runs in torch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from sparsity.runtime import _activations as activations
from sparsity.runtime._calls import named_call
from sparsity.runtime._inline import mean_of_heads
from sparsity.runtime._lower_modules import from_module
from sparsity.runtime._operands import Affine, PoolKind
from sparsity.runtime._ops import (
    Activate,
    ChannelAffine,
    Conv,
    GlobalMean,
    Linear,
    Norm,
    Op,
    Permute,
    Pool,
    Product,
    Reshape,
    Sum,
    Torch,
    same_shape,
)
from sparsity.runtime._program import Ops, Source
from sparsity.runtime._weights import scale_and_shift


def lower(source: Source) -> Ops:
    """One operation per node; what only passes its input on is left out, and so are constants that nobody reads."""
    held = {node for chain in source.facts.chains for node in chain}
    made: list[Op] = []
    for node in list(source.graph.nodes):
        if node.op == "output":
            break
        op = None if node in held else _lowered(source, node)
        if isinstance(op, fx.Node):
            node.replace_all_uses_with(op)
            continue
        op = op or Torch(node, node.all_input_nodes)
        # The graph's own call needs the constants that the operation has taken in.
        op.verbatim = op.verbatim and set(node.all_input_nodes) <= set(op.inputs)
        made.append(op)
    ops = Ops(source)
    for op in made:
        ops.add(op)
    for op in reversed(made):
        if op.node in source.facts.constants and not ops.readers(op.node) and op.node not in ops.outputs:
            ops.remove(op)
    return ops


def _lowered(source: Source, node: fx.Node) -> Op | fx.Node | None:
    """The operation of a node, or the node whose value it passes on."""
    if node.op == "call_module":
        return from_module(source, node, source.root.get_submodule(str(node.target)))
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target is mean_of_heads:
        return _mean_of_heads(source, node)
    if node.target is operator.getitem and _takes_all(node.args[1]):
        return node.args[0]  # pyright: ignore
    activation = activations.of_function(node.target, node.args, node.kwargs)
    if activation is not None and _is_value(source, node, node.args[:1]):
        return Activate(node, [node.args[0]], activation)  # pyright: ignore
    call = named_call(node)
    if call is None:
        return None
    name, given = call
    handler = _HANDLERS.get(name)
    return None if handler is None else handler(source, node, given)


def _takes_all(index: Any) -> bool:
    """Whether an index takes everything, as ``x[:, 0:]`` does."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(
        isinstance(part, slice) and part.start in (None, 0) and part.stop is None and part.step in (None, 1)
        for part in parts
    )


def _is_value(source: Source, node: fx.Node, args: Any) -> bool:
    """Whether the node and these arguments are float32 tensors that depend on the inputs."""
    shapes, constants = source.shapes, source.facts.constants
    return node in shapes and all(
        isinstance(each, fx.Node) and each in shapes and each not in constants for each in args
    )


def _mean_of_heads(source: Source, node: fx.Node) -> Op | fx.Node | None:
    heads = list(node.args)
    if len(heads) == 1 and isinstance(heads[0], fx.Node):
        return heads[0]
    if not _is_value(source, node, heads) or not same_shape(source.shapes, [node, *heads]):  # pyright: ignore
        return None
    return Sum(node, heads, scale=1 / len(heads))  # pyright: ignore


def _constant(source: Source, value: Any) -> Tensor | None:
    """The value of an argument that is a constant of the graph."""
    return source.facts.constants.get(value) if isinstance(value, fx.Node) else None


def _optional(source: Source, given: dict[str, Any], name: str) -> tuple[bool, Tensor | None]:
    """Whether an argument is a constant or absent, and its value."""
    value = given.get(name)
    tensor = _constant(source, value)
    return value is None or tensor is not None, tensor


def _conv2d(source: Source, node: fx.Node, given: dict[str, Any]) -> Op | None:
    weight, (known, bias) = _constant(source, given.get("weight")), _optional(source, given, "bias")
    if weight is None or not known or not _is_value(source, node, [given["input"]]) or len(source.shapes[node]) != 4:
        return None
    padding = given.get("padding", 0)
    if isinstance(padding, str):
        return None
    return Conv(
        node,
        [given["input"]],
        str(given["weight"].target),
        tuple(weight.shape),
        lambda: weight,
        bias,
        stride=pair(given.get("stride", 1)),
        padding=pair(padding),
        dilation=pair(given.get("dilation", 1)),
        groups=given.get("groups", 1),
    )


def _linear(source: Source, node: fx.Node, given: dict[str, Any]) -> Op | None:
    weight, (known, bias) = _constant(source, given.get("weight")), _optional(source, given, "bias")
    if weight is None or not known or not _is_value(source, node, [given["input"]]) or len(source.shapes[node]) < 2:
        return None
    path = str(given["weight"].target)
    return Linear(node, [given["input"]], path, tuple(weight.shape), lambda: weight, bias)


def _batch_norm(source: Source, node: fx.Node, given: dict[str, Any]) -> Op | None:
    values = {name: _optional(source, given, name) for name in ("running_mean", "running_var", "weight", "bias")}
    mean, var = values["running_mean"][1], values["running_var"][1]
    if mean is None or var is None or given.get("training") or not all(known for known, _ in values.values()):
        return None
    if not _is_value(source, node, [given["input"]]):
        return None
    scale, shift = scale_and_shift(mean, var, values["weight"][1], values["bias"][1], given.get("eps", 1e-5))
    return ChannelAffine(node, [given["input"]], Affine(scale, shift, False), dim=1)


def _norm(source: Source, node: fx.Node, given: dict[str, Any], centered: bool) -> Op | None:
    (known_weight, weight), (known_bias, bias) = (_optional(source, given, name) for name in ("weight", "bias"))
    shape = given.get("normalized_shape", ())
    if len(shape) != 1 or not known_weight or not known_bias or not _is_value(source, node, [given["input"]]):
        return None
    eps = given.get("eps")
    # torch's default for rms_norm is the dtype's own epsilon.
    eps = eps if eps is not None else 1e-5 if centered else torch.finfo(torch.float32).eps
    return Norm(node, [given["input"]], weight, bias, eps, centered)


def _pool(source: Source, node: fx.Node, given: dict[str, Any], kind: PoolKind) -> Op | None:
    unsupported = (
        given.get("return_indices") or given.get("divisor_override") or pair(given.get("dilation", 1)) != (1, 1)
    )
    if unsupported or not _is_value(source, node, [given["input"]]) or len(source.shapes[node]) != 4:
        return None
    kernel = pair(given["kernel_size"])
    return Pool(
        node,
        [given["input"]],
        kind,
        kernel,
        pair(given.get("stride") or kernel),
        pair(given.get("padding", 0)),
        bool(given.get("ceil_mode", False)),
        bool(given.get("count_include_pad", True)),
    )


def _adaptive(source: Source, node: fx.Node, given: dict[str, Any]) -> Op | None:
    if pair(given["output_size"]) != (1, 1) or not _is_value(source, node, [given["input"]]):
        return None
    return GlobalMean(node, [given["input"]]) if len(source.shapes[given["input"]]) == 4 else None


def _mean(source: Source, node: fx.Node, given: dict[str, Any]) -> Op | None:
    dims = given.get("dim")
    if not isinstance(dims, (list, tuple)) or not _is_value(source, node, [given["input"]]):
        return None
    images = len(source.shapes[given["input"]]) == 4 and sorted(dim % 4 for dim in dims) == [2, 3]
    return GlobalMean(node, [given["input"]]) if images else None


def _add(source: Source, node: fx.Node, given: dict[str, Any]) -> Op | None:
    operands = [given["input"], given.get("other")]
    if _is_value(source, node, operands) and same_shape(source.shapes, [node, *operands]):
        return Sum(node, operands)
    return _with_constant(source, node, operands, lambda value: Affine(None, value, False))


def _mul(source: Source, node: fx.Node, given: dict[str, Any]) -> Op | None:
    operands = [given["input"], given.get("other")]
    if _is_value(source, node, operands) and same_shape(source.shapes, [node, *operands]):
        return Product(node, operands)
    return _with_constant(source, node, operands, lambda value: Affine(value, None, False))


def _with_constant(
    source: Source, node: fx.Node, operands: list[Any], make: Callable[[Tensor], Affine]
) -> ChannelAffine | None:
    """An affine if one operand is a constant with one value per channel."""
    for x, other in (operands, operands[::-1]):
        value = _constant(source, other)
        if value is None or value.dtype != torch.float32 or not _is_value(source, node, [x]):
            continue
        shape = source.shapes[node]
        if source.shapes[x] != shape:
            return None
        for dim in (len(shape) - 1, 1):
            wanted = [size if each == dim else 1 for each, size in enumerate(shape)]
            padded = [1] * (len(shape) - value.ndim) + list(value.shape)
            if len(shape) > 1 and padded == wanted:
                return ChannelAffine(node, [x], make(value.flatten()), dim=dim)
    return None


def _permute(source: Source, node: fx.Node, given: dict[str, Any]) -> Op | None:
    dims = given.get("dims")
    if not isinstance(dims, (list, tuple)) or not all(isinstance(dim, int) for dim in dims):
        return None
    if not _is_value(source, node, [given["input"]]):
        return None
    order = [dim % len(dims) for dim in dims]
    if order not in ([0, 2, 3, 1], [0, 3, 1, 2]):
        return None
    return Permute(node, [given["input"]], order == [0, 2, 3, 1])


def _reshape(source: Source, node: fx.Node, given: dict[str, Any]) -> Op | None:
    if not _is_value(source, node, [given["input"]]):
        return None
    before, after = source.shapes[given["input"]], source.shapes[node]
    # Only images to vectors: the batch stays what it is, so the floats of a sample stay where they are.
    flattens = len(before) == 4 and len(after) == 2 and after[0] == before[0]
    return Reshape(node, [given["input"]]) if flattens else None


def _dropout(source: Source, node: fx.Node, given: dict[str, Any]) -> fx.Node | None:
    inactive = given.get("training") is False or given.get("p") == 0
    return given["input"] if inactive and isinstance(given["input"], fx.Node) else None


def pair(value: Any) -> tuple[int, int]:
    """A size for height and width."""
    return (int(value[0]), int(value[-1])) if isinstance(value, (tuple, list)) else (int(value), int(value))


_HANDLERS: dict[str, Callable[[Source, fx.Node, dict[str, Any]], Op | fx.Node | None]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": lambda source, node, given: _norm(source, node, given, True),
    "rms_norm": lambda source, node, given: _norm(source, node, given, False),
    "max_pool2d": lambda source, node, given: _pool(source, node, given, PoolKind.MAX),
    "avg_pool2d": lambda source, node, given: _pool(source, node, given, PoolKind.AVERAGE),
    "adaptive_avg_pool2d": _adaptive,
    "mean": _mean,
    "add": _add,
    "mul": _mul,
    "dropout": _dropout,
    "permute": _permute,
    "flatten": _reshape,
    "reshape": _reshape,
    "view": _reshape,
    "squeeze": _reshape,
}
