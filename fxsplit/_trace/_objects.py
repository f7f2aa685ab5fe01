"""Walks the Python values that flow between operations: containers, dataclasses, arbitrary objects."""

from __future__ import annotations

import builtins
import dataclasses
import enum
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch

from fxsplit._trace._records import Call, Ref

_PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    type(None),
    type(Ellipsis),
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)
_MAX_DEPTH = 6
Find = Callable[[Any], Ref | None]


class Opaque(Exception):
    """A value that cannot be written into a graph."""


def is_plain(value: Any) -> bool:
    """Whether ``value`` is a constant that a graph can hold."""
    return isinstance(value, _PLAIN) and not isinstance(value, enum.Enum)


def tensors_in(value: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    """Every tensor inside nested containers and objects."""
    if isinstance(value, torch.Tensor):
        yield value
    elif is_plain(value) or depth > _MAX_DEPTH:
        return
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item, depth + 1)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item, depth + 1)
    elif _carries_attributes(value):
        for item in vars(value).values():
            yield from tensors_in(item, depth + 1)


def has_tensors(value: Any) -> bool:
    """Whether any tensor is inside ``value``."""
    return next(tensors_in(value), None) is not None


def convert(value: Any, find: Find) -> Any:
    """Write an argument for the record: tensors and known objects become refs, containers plain ones.

    Named tuples keep their class: a PackedSequence is one.

    Raises:
        Opaque: the value holds something that a graph cannot.
    """
    if isinstance(value, torch.Tensor):
        return find(value)
    if is_plain(value):
        return value
    if isinstance(value, enum.Enum):
        return convert(value.value, find)
    if isinstance(value, list):
        return [convert(item, find) for item in value]
    if isinstance(value, tuple):
        items = tuple(convert(item, find) for item in value)
        return Call(type(value), items) if hasattr(value, "_fields") else items
    if isinstance(value, range):
        return list(value)
    if isinstance(value, slice):
        return slice(*(convert(item, find) for item in (value.start, value.stop, value.step)))
    if isinstance(value, (numpy.generic, numpy.ndarray)):
        return value.tolist()
    ref = find(value)
    if ref is not None:
        return ref
    if type(value) in (dict, OrderedDict):
        return {key: convert(item, find) for key, item in value.items()}
    raise Opaque(f"an argument of type {type(value).__module__}.{type(value).__qualname__}")


def rebind(value: Any, member: Callable[[Callable[..., Any], Any, Any], Any]) -> Any:
    """Replace what ``value`` contains by ``member(getter, key, item)``; objects and dicts are changed in place."""
    if isinstance(value, (list, tuple)):
        items = [member(operator.getitem, index, item) for index, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)  # type: ignore[call-arg]
    if isinstance(value, dict):
        for key, item in list(value.items()):
            new = member(operator.getitem, key, item)
            if new is not item:
                value[key] = new
        return value
    for key, item in list(vars(value).items()):
        new = member(builtins.getattr, key, item)
        if new is not item:
            object.__setattr__(value, key, new)
    return value


def rebuild_output(value: Any, find: Find, dropped: list[str], name: str = "output") -> Any:
    """Describe how a graph returns ``value``: refs for tensors, ``Call`` for classes that must be built.

    What cannot be rebuilt (a key-value cache) is returned as None and named in ``dropped``.
    """
    if isinstance(value, torch.Tensor):
        return find(value)
    if is_plain(value):
        return value

    def part(key: Any, item: Any) -> Any:
        return rebuild_output(item, find, dropped, f"{name}.{key}")

    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return Call(type(value), tuple(part(key, item) for key, item in zip(value._fields, value, strict=True)))  # type: ignore[attr-defined]
    if isinstance(value, (list, tuple)):
        items = [part(index, item) for index, item in enumerate(value)]
        if type(value) in (list, tuple):
            return type(value)(items)
        return Call(type(value), (items,))
    if isinstance(value, dict):
        return _rebuild_dict(value, {key: part(key, item) for key, item in value.items()})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return Call(type(value), (), {key: part(key, getattr(value, key)) for key in names})
    dropped.append(f"{name} ({type(value).__name__}) cannot be rebuilt by a graph and is returned as None")
    return None


def _rebuild_dict(value: dict[Any, Any], items: dict[Any, Any]) -> Any:
    if type(value) is dict:
        return items
    if dataclasses.is_dataclass(value):
        return Call(type(value), (), items)
    return Call(type(value), (list(items.items()),))


def _carries_attributes(value: Any) -> bool:
    """Whether ``value`` is a plain object whose attributes may carry tensors."""
    if isinstance(value, (type, enum.Enum, torch.nn.Module, torch.Generator)) or callable(value):
        return False
    return hasattr(value, "__dict__") and type(value).__module__ != "builtins"
