"""Functions that ``torch.vmap`` maps, as operations of a graph: what they close over becomes arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from types import CellType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Replace = Callable[[Any], Any]


def captured(function: Callable[..., Any]) -> list[Any]:
    """Tensors and whole numbers that a function closes over, also inside functions and containers that it does.

    Example:
        >>> def shift(by): return lambda x: x + by
        >>> captured(shift(3))
        [3]
    """
    found: list[Any] = []

    def collect(value: Any) -> Any:
        found.append(value)
        return value

    _rebuild(function, collect, {})
    return found


def with_captured(function: Callable[..., Any], values: Sequence[Any]) -> Callable[..., Any]:
    """The same function closing over other values, given in the order of `captured`."""
    following: Iterator[Any] = iter(values)
    return _rebuild(function, lambda _: next(following), {})


def _rebuild(value: Any, replace: Replace, made: dict[int, Any]) -> Any:
    if isinstance(value, torch.Tensor) or type(value) is int:
        return replace(value)
    if isinstance(value, FunctionType) and value.__closure__:
        return made[id(value)] if id(value) in made else _rebuild_function(value, replace, made)
    if isinstance(value, functools.partial):
        arguments = [_rebuild(item, replace, made) for item in value.args]
        keywords = {name: _rebuild(item, replace, made) for name, item in value.keywords.items()}
        return functools.partial(_rebuild(value.func, replace, made), *arguments, **keywords)
    if type(value) is list:
        return [_rebuild(item, replace, made) for item in value]
    if type(value) is tuple:
        return tuple(_rebuild(item, replace, made) for item in value)
    return value


def _rebuild_function(function: FunctionType, replace: Replace, made: dict[int, Any]) -> FunctionType:
    old = function.__closure__ or ()
    cells = tuple(CellType() for _ in old)
    new = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    new.__kwdefaults__ = function.__kwdefaults__
    made[id(function)] = new  # a function may close over itself
    for cell, content in zip(cells, old, strict=True):
        with suppress(ValueError):  # it is empty, since its variable has no value yet
            cell.cell_contents = _rebuild(content.cell_contents, replace, made)
    return new


class MappedFunction(nn.Module):
    """A function made by ``torch.vmap``, as a module, so that a graph can call it whole.

    Args:
        function: The function, whose captured values are replaced in every call.
        modes: Classes of function modes that were on when it was called.
    """

    def __init__(self, function: Callable[..., Any], modes: Sequence[type[TorchFunctionMode]]) -> None:
        super().__init__()
        self.function = function
        self.modes = tuple(modes)

    def forward(self, values: Sequence[Any], *args: Any) -> Any:
        """Call the function with other captured values."""
        with ExitStack() as stack:
            for mode in self.modes:
                stack.enter_context(mode())
            return with_captured(self.function, values)(*args)

    def extra_repr(self) -> str:
        """Name the function."""
        return getattr(self.function, "__qualname__", "")
