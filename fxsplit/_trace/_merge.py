"""Merges aligned recordings: what follows the sizes becomes arithmetic, what follows the mode a switch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxsplit._trace._align import Mismatch
from fxsplit._trace._fit import Sizes, fit_size
from fxsplit._trace._records import Call, Record, Ref

_NESTED = (list, tuple, dict, slice, Call)


@dataclass(frozen=True, slots=True)
class Switch:
    """A value that differs between train and eval mode."""

    train: Any
    evaluation: Any


@dataclass
class Merged:
    """The merged arguments of every record and the output, and what could not be merged."""

    values: list[Any]
    output: Any
    mismatches: list[Mismatch]


def merge_sizes(runs: Sequence[Sequence[Record]], outputs: Sequence[Any], sizes: Sequence[Sizes]) -> Merged:
    """Merge runs at different sizes; the first is the base, whose values stay where runs cannot be merged."""
    merged = Merged([], None, [])

    def merge(values: Sequence[Any], path: str) -> Any:
        first = values[0]
        if isinstance(first, _NESTED):
            parts = _parts_of_all(values)
            if parts is None:
                merged.mismatches.append(Mismatch(path, "an argument changes its structure with the input sizes"))
                return first
            return _rebuild(first, {key: merge([part[key] for part in parts], path) for key in parts[0]})
        if all(_same(value, first) for value in values):
            return first
        fitted = fit_size(values, sizes)
        if fitted is None:
            seen = ", ".join(str(value)[:40] for value in values)
            merged.mismatches.append(Mismatch(path, f"a value follows the input sizes in no simple way ({seen})"))
            return first
        return fitted

    for records in zip(*runs, strict=True):
        merged.values.append(merge([(record.args, record.kwargs) for record in records], records[0].owner))
    merged.output = merge(outputs, "")
    return merged


def add_train_mode(
    merged: Merged, base: Sequence[Record], train: Sequence[Record], outputs: tuple[Any, Any]
) -> list[Mismatch]:
    """Turn values that are different in a train run into switches; the run has to align with the base."""
    found: list[Mismatch] = []

    def add(value: Any, evaluation: Any, in_train: Any, path: str) -> Any:
        if isinstance(evaluation, _NESTED):
            parts = _parts_of_all([value, evaluation, in_train])
            if parts is None:
                found.append(Mismatch(path, "in train mode an argument or the output has another structure"))
                return value
            one, two, three = parts
            return _rebuild(value, {key: add(one[key], two[key], three[key], path) for key in one})
        if _same(evaluation, in_train):
            return value
        if isinstance(evaluation, Ref) or isinstance(in_train, (Ref, *_NESTED)) or not _same(value, evaluation):
            found.append(Mismatch(path, f"in train mode {in_train!r} is used in place of {evaluation!r}"))
            return value
        return Switch(in_train, evaluation)

    pairs = zip(base, train, strict=True)
    merged.values = [
        add(value, (one.args, one.kwargs), (other.args, other.kwargs), one.owner)
        for value, (one, other) in zip(merged.values, pairs, strict=True)
    ]
    merged.output = add(merged.output, *outputs, "")
    return found


def add_train_loosely(
    merged: Merged, base: Sequence[Record], train: Sequence[Record], partners: Mapping[int, int]
) -> None:
    """Add switches for flags and rates (dropout) where a train run aligns with the base in parts only."""

    def add(value: Any, evaluation: Any, in_train: Any) -> Any:
        if isinstance(evaluation, _NESTED):
            parts = _parts_of_all([value, evaluation, in_train])
            if parts is None:
                return value
            return _rebuild(value, {key: add(*(part[key] for part in parts)) for key in parts[0]})
        flag = isinstance(evaluation, (bool, float)) and type(in_train) is type(evaluation)
        return Switch(in_train, evaluation) if flag and not _same(evaluation, in_train) else value

    for index, partner in partners.items():
        one, other = base[index], train[partner]
        merged.values[index] = add(merged.values[index], (one.args, one.kwargs), (other.args, other.kwargs))


def differing_constants(base: Sequence[Record], constants: Sequence[dict[str, torch.Tensor]]) -> list[Mismatch]:
    """Captured tensors that were not the same in every run, and so are no constants."""
    found: list[Mismatch] = []
    for record in base:
        captured = [run[record.target] for run in constants if record.op == "get_attr" and record.target in run]
        if any(not _equal(captured[0], other) for other in captured[1:]):
            found.append(Mismatch(record.owner, "it uses a tensor that no recorded operation made"))
    return found


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return a.is_meta or torch.equal(a.nan_to_num(), b.nan_to_num())


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


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a == b or (isinstance(a, (float, complex)) and a != a and b != b))
