"""How a call seen by a torch function mode is written as a graph node, and what kind of call it is."""

from __future__ import annotations

import builtins
import functools
import operator
from typing import Any

import torch

_READS = frozenset(
    [
        "__bool__",
        "__int__",
        "__float__",
        "__complex__",
        "__index__",
        "__contains__",
        "__format__",
        "__array__",
        "__nonzero__",
        "item",
        "tolist",
        "numpy",
        "equal",
        "allclose",
        "is_nonzero",
    ]
)
_SIZES = frozenset(["size", "__len__", "numel", "nelement", "stride"])  # return one number, or several
_PARTS = frozenset(["unbind", "chunk", "split", "tensor_split", "hsplit", "vsplit", "dsplit", "__iter__", "stride"])
_RANDOM = frozenset(
    [
        "rand",
        "randn",
        "randint",
        "randperm",
        "rand_like",
        "randn_like",
        "randint_like",
        "bernoulli",
        "bernoulli_",
        "multinomial",
        "normal",
        "normal_",
        "uniform_",
        "random_",
        "poisson",
        "exponential_",
        "cauchy_",
        "geometric_",
        "log_normal_",
    ]
)


@functools.cache
def _methods() -> dict[Any, str]:
    """Names by function: an operator's function need not be called like the method (``**`` runs one named pow)."""
    names = (name for name in dir(torch.Tensor) if callable(getattr(torch.Tensor, name, None)))
    return {getattr(torch.Tensor, name): name for name in names}


def as_node(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Any, Any]:
    """Return ``(op, target, (args, kwargs))`` for a call of ``func``."""
    if is_attribute(func):
        return "call_function", builtins.getattr, ((args[0], func.__self__.__name__), {})
    name = _methods().get(func)
    if name is not None:
        function = getattr(operator, name, None) if name.startswith("__") else None
        if function is not None and not kwargs:
            return "call_function", function, (args, kwargs)
        return "call_method", name, (args, kwargs)
    return "call_function", func, (args, kwargs)


def is_attribute(func: Any) -> bool:
    """Whether the call reads an attribute of a tensor."""
    return getattr(func, "__name__", "") == "__get__"


def reads_data(func: Any) -> bool:
    """Whether the call hands tensor data to Python."""
    return getattr(func, "__name__", "") in _READS


def is_random(func: Any) -> bool:
    """Whether the call draws random numbers that Python could branch on."""
    return getattr(func, "__name__", "") in _RANDOM


def reads_size(func: Any, out: Any) -> bool:
    """Whether the call hands sizes to Python, or returns as many tensors as a size says."""
    if isinstance(out, torch.Size):
        return True
    name = getattr(func, "__name__", "")
    return name in (_SIZES if type(out) is int else _PARTS if isinstance(out, (tuple, list)) else ())


def replaces_data(func: Any) -> bool:
    """Whether the call assigns ``tensor.data``, which no graph can express."""
    return getattr(func, "__name__", "") == "__set__" and func.__self__.__name__ == "data"
