"""Merges aligned recordings: what follows the sizes becomes arithmetic, what follows the mode a switch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxsplit._trace._align import Mismatch
from fxsplit._trace._fit import Sizes, fit_size
from fxsplit._trace._nested import combine
from fxsplit._trace._records import Record, Ref


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
        def leaf(*seen: Any) -> Any:
            if all(same_value(value, seen[0]) for value in seen):
                return seen[0]
            fitted = fit_size(seen, sizes)
            if fitted is None:
                listed = ", ".join(str(value)[:40] for value in seen)
                merged.mismatches.append(Mismatch(path, f"a value follows the input sizes in no simple way ({listed})"))
                return seen[0]
            return fitted

        def uneven() -> None:
            merged.mismatches.append(Mismatch(path, "an argument changes its structure with the input sizes"))

        return combine(values, leaf, uneven)

    for records in zip(*runs, strict=True):
        merged.values.append(merge([(record.args, record.kwargs) for record in records], records[0].owner))
    merged.output = merge(outputs, "")
    return merged


def add_train_mode(
    merged: Merged, base: Sequence[Record], train: Sequence[Record], outputs: tuple[Any, Any]
) -> list[Mismatch]:
    """Turn values that are different in a train run into switches; the run has to align with the base."""
    found: list[Mismatch] = []

    def add(values: Sequence[Any], path: str) -> Any:
        def leaf(value: Any, evaluation: Any, in_train: Any) -> Any:
            if same_value(evaluation, in_train):
                return value
            if isinstance(evaluation, Ref) or isinstance(in_train, Ref) or not same_value(value, evaluation):
                found.append(Mismatch(path, f"in train mode {in_train!r} is used in place of {evaluation!r}"))
                return value
            return Switch(in_train, evaluation)

        def uneven() -> None:
            found.append(Mismatch(path, "in train mode an argument or the output has another structure"))

        return combine(values, leaf, uneven)

    for index, (one, other) in enumerate(zip(base, train, strict=True)):
        seen = (merged.values[index], (one.args, one.kwargs), (other.args, other.kwargs))
        merged.values[index] = add(seen, one.owner)
    merged.output = add((merged.output, *outputs), "")
    return found


def add_train_loosely(
    merged: Merged, base: Sequence[Record], train: Sequence[Record], partners: Mapping[int, int]
) -> None:
    """Add switches for flags and rates (dropout) where a train run aligns with the base in parts only."""

    def leaf(value: Any, evaluation: Any, in_train: Any) -> Any:
        flag = isinstance(evaluation, (bool, float)) and type(in_train) is type(evaluation)
        return Switch(in_train, evaluation) if flag and not same_value(evaluation, in_train) else value

    for index, partner in partners.items():
        one, other = base[index], train[partner]
        seen = (merged.values[index], (one.args, one.kwargs), (other.args, other.kwargs))
        merged.values[index] = combine(seen, leaf, lambda: None)


def differing_constants(base: Sequence[Record], constants: Sequence[dict[str, torch.Tensor]]) -> list[Mismatch]:
    """Captured tensors that were not the same in every run, and so are no constants."""
    found: list[Mismatch] = []
    for record in base:
        captured = [run[record.target] for run in constants if record.op == "get_attr" and record.target in run]
        if any(not same_tensor(captured[0], other) for other in captured[1:]):
            found.append(Mismatch(record.owner, "it uses a tensor that no recorded operation made"))
    return found


def same_tensor(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors hold the same; of meta tensors only shape and dtype can be told."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return a.is_meta or torch.equal(a.nan_to_num(), b.nan_to_num())


def same_value(a: Any, b: Any) -> bool:
    """Whether two constants are the same, NaN included."""
    return type(a) is type(b) and (a == b or (isinstance(a, (float, complex)) and a != a and b != b))
