"""Walks the nested arguments of records: lists, tuples, dicts, slices and calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fxsplit._trace._records import Call, Ref

_NESTED = (list, tuple, dict, slice, Call)
_WITH_REFS = (Ref, *_NESTED)


def map_value(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Apply ``leaf`` to everything in nested lists, tuples, dicts, slices and calls that is not one of them."""
    if isinstance(value, (list, tuple)):
        return type(value)(map_value(item, leaf) for item in value)
    if isinstance(value, dict):
        return {key: map_value(item, leaf) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(map_value(item, leaf) for item in (value.start, value.stop, value.step)))
    if isinstance(value, Call):
        return Call(value.target, map_value(value.args, leaf), map_value(value.kwargs, leaf))
    return leaf(value)


def refs_in(value: Any) -> Iterator[Ref]:
    """Every ``Ref`` in a nested value."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            if isinstance(item, _WITH_REFS):
                yield from refs_in(item)
    elif isinstance(value, dict):
        yield from refs_in(tuple(value.values()))
    elif isinstance(value, slice):
        yield from refs_in((value.start, value.stop, value.step))
    elif isinstance(value, Call):
        yield from refs_in((value.args, value.kwargs))


def combine(values: Sequence[Any], leaf: Callable[..., Any], uneven: Callable[[], None]) -> Any:
    """Build one nested value from several of the same structure by ``leaf(*values)`` at every place.

    Where they differ in structure ``uneven()`` is called, and the first of them stays.
    """
    first = values[0]
    if not any(isinstance(value, _NESTED) for value in values):
        return leaf(*values)
    parts = _parts_of_all(values)
    if parts is None:
        uneven()
        return first
    return _rebuild(first, {key: combine([part[key] for part in parts], leaf, uneven) for key in parts[0]})


def _parts_of_all(values: Sequence[Any]) -> list[dict[Any, Any]] | None:
    """The parts of containers of one and the same structure; None if they differ in it."""
    first = values[0]
    if any(type(value) is not type(first) for value in values):
        return None
    if isinstance(first, Call) and any(value.target is not first.target for value in values):
        return None
    parts = [_parts(value) for value in values]
    return parts if all(part.keys() == parts[0].keys() for part in parts) else None


def _parts(value: Any) -> dict[Any, Any]:
    if isinstance(value, dict):
        return value
    if isinstance(value, slice):
        return {"start": value.start, "stop": value.stop, "step": value.step}
    if isinstance(value, Call):
        return {"args": value.args, "kwargs": value.kwargs}
    return dict(enumerate(value))


def _rebuild(like: Any, parts: dict[Any, Any]) -> Any:
    if isinstance(like, dict):
        return parts
    if isinstance(like, slice):
        return slice(*parts.values())
    if isinstance(like, Call):
        return Call(like.target, **parts)
    return type(like)(parts.values())
