"""Passes on a container whole that code took apart and put together again, so that its length may vary.

``torch.cat(list(x))`` makes one record per row of the batch, but is one operation on what ``unbind`` returned.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from fxsplit._trace._nested import map_value, refs_in
from fxsplit._trace._records import Call, Record, Ref

Places = dict[tuple[int, ...], int]


def fold_containers(
    records: Sequence[Record], output: Any, inputs: Sequence[int]
) -> tuple[list[Record], Any, list[int]]:
    """Replace lists of exactly the items of one container, in order, by the container, if it is used no other way.

    Returns:
        The records without such items, the output, and the positions of the inputs; all refs follow.
    """
    places = _places(records)
    while places:
        items = {item: container for key, container in places.items() for item in key}
        values = [(record.args, record.kwargs) for record in records]
        folded = [_fold_arguments(record, places) for record in records]
        returned = _fold(output, places, returned=True)
        used = [value for index, value in enumerate(folded) if index not in items]
        otherwise = {items[ref.index] for ref in refs_in([*used, returned]) if ref.index in items}
        if otherwise:
            places = {key: container for key, container in places.items() if container not in otherwise}
            continue
        if folded == values and returned == output:
            break
        return _without(records, folded, returned, items, inputs)
    return list(records), output, list(inputs)


def _places(records: Sequence[Record]) -> Places:
    """The container behind the positions of its items, where all of them were taken out, in order."""
    items: dict[int, list[int]] = {}
    for index, record in enumerate(records):
        if record.op == "call_function" and record.target is operator.getitem and isinstance(record.args[0], Ref):
            items.setdefault(record.args[0].index, []).append(index)
    return {
        tuple(found): container
        for container, found in items.items()
        if [records[item].args[1] for item in found] == list(range(records[container].length or 0))
    }


def _fold_arguments(record: Record, places: Places) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if record.op not in ("call_function", "call_method"):
        return record.args, record.kwargs
    # Operators of torch take any sequence of tensors.
    args = tuple(_fold(value, places, returned=False) for value in record.args)
    return args, {name: _fold(value, places, returned=False) for name, value in record.kwargs.items()}


def _fold(value: Any, places: Places, *, returned: bool) -> Any:
    """Replace whole containers; those that are ``returned`` keep their type, and may be deep inside."""
    if isinstance(value, (list, tuple)):
        key = tuple(item.index if isinstance(item, Ref) else -1 for item in value)
        if key in places:
            whole = Ref(places[key])
            return Call(type(value), (whole,)) if returned else whole
    if not returned:
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(_fold(item, places, returned=True) for item in value)
    if isinstance(value, dict):
        return {name: _fold(item, places, returned=True) for name, item in value.items()}
    if isinstance(value, Call):
        args = tuple(_fold(item, places, returned=True) for item in value.args)
        return Call(value.target, args, _fold(value.kwargs, places, returned=True))
    return value


def _without(
    records: Sequence[Record], values: Sequence[Any], output: Any, items: dict[int, int], inputs: Sequence[int]
) -> tuple[list[Record], Any, list[int]]:
    position: dict[int, int] = {}
    for index in range(len(records)):
        if index not in items:
            position[index] = len(position)

    def move(value: Any) -> Any:
        return Ref(position[value.index]) if isinstance(value, Ref) else value

    kept: list[Record] = []
    for index in position:
        record = records[index]
        record.args, record.kwargs = map_value(values[index], move)
        record.whole = index in items.values()
        kept.append(record)
    return kept, map_value(output, move), [position[index] for index in inputs]
