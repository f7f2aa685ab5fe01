"""Calls of functions and methods, with their arguments by name."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

_METHOD_LIKE = (torch, F, operator)
_SIGNATURES: dict[str, tuple[str, ...]] = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "linear": ("input", "weight", "bias"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool2d": (
        "input",
        "kernel_size",
        "stride",
        "padding",
        "ceil_mode",
        "count_include_pad",
        "divisor_override",
    ),
    "adaptive_avg_pool2d": ("input", "output_size"),
    "mean": ("input", "dim", "keepdim"),
    "add": ("input", "other"),
    "mul": ("input", "other"),
    "dropout": ("input", "p", "training", "inplace"),
    "permute": ("input", "dims"),
    "flatten": (),
    "reshape": (),
    "view": (),
    "squeeze": (),
}
_ALIASES = {
    "__add__": "add",
    "__radd__": "add",
    "__mul__": "mul",
    "__rmul__": "mul",
    "multiply": "mul",
    "_native_batch_norm": "",
    "max_pool2d_with_indices": "",
}


def named_call(node: fx.Node) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of a call that lowering knows, of torch, torch.nn.functional, operator or a tensor's method.

    Calls with arguments beyond those known (``out=``, ``alpha=2``) are not among them. For calls that only reshape,
    the arguments are left out but for ``input``.
    """
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    # torch wraps some functions so that the name differs: F.max_pool2d is boolean_dispatch.
    for known in ("max_pool2d",):
        if target is getattr(F, known) or target is getattr(torch, known, None):
            name = known
    name = _ALIASES.get(name, name)
    if name not in _SIGNATURES or (not node.args and "input" not in node.kwargs):
        return None
    if node.op == "call_function" and not _is_known(target, name):
        return None
    if node.op == "call_method" and not hasattr(Tensor, str(target)):
        return None
    names = _SIGNATURES[name]
    if name == "permute" and len(node.args) > 2:
        return name, {"input": node.args[0], "dims": node.args[1:]}
    if not names:
        return name, {"input": node.args[0] if node.args else node.kwargs["input"]}
    if len(node.args) > len(names):
        return None
    bound: dict[str, Any] = dict(zip(names, node.args, strict=False))
    for key, value in node.kwargs.items():
        if key == "alpha" and value == 1:
            continue
        key = {"axis": "dim", "keepdims": "keepdim"}.get(key, key)
        if key not in names or key in bound:
            return None
        bound[key] = value
    return name, bound


def _is_known(target: Any, name: str) -> bool:
    candidates = [
        getattr(space, each, None) for space in _METHOD_LIKE for each in (name, getattr(target, "__name__", ""))
    ]
    return any(target is each for each in candidates)
