"""Aligns recordings of the same model: what changed with the batch size becomes arithmetic, with the mode a switch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from fxsplit._trace._records import Call, Record, Ref

Sizes = dict[str, int]
BATCH = "batch"


@dataclass(frozen=True, slots=True)
class SizeExpr:
    """``factor * product(symbols) + offset``: an integer of the graph that follows the inputs' sizes."""

    symbols: tuple[str, ...]
    factor: Fraction
    offset: int

    def __str__(self) -> str:
        product = " * ".join((str(self.factor), *self.symbols))
        return f"{product} + {self.offset}" if self.offset else product


@dataclass(frozen=True, slots=True)
class Switch:
    """A value that differs between train and eval mode."""

    train: Any
    evaluation: Any


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Two recordings disagree inside the module at ``path``."""

    path: str
    why: str


def pair_up(a: Sequence[Record], b: Sequence[Record], what: str) -> list[Mismatch]:
    """Compare two recordings; after a disagreement go on behind the innermost module open in both."""
    found: list[Mismatch] = []
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i].key == b[j].key:
            i, j = i + 1, j + 1
            continue
        common = _common(a[i].modules, b[j].modules)
        found.append(Mismatch(common[-1] if common else "", f"{what}: {_say(a[i])} against {_say(b[j])}"))
        i, j = _leave(a, i, common), _leave(b, j, common)
    rest = [*a[i:], *b[j:]]
    if rest:
        found.append(Mismatch("", f"{what}: one recording goes on with {_say(rest[0])}"))
    return found


def _common(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    length = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:length]


def _leave(records: Sequence[Record], index: int, modules: tuple[str, ...]) -> int:
    while index < len(records) and records[index].modules[: len(modules)] == modules:
        index += 1
    return index


def _say(record: Record) -> str:
    return f"{record.op} {record.key[1]} in {record.path or 'the model'}"


def pair_loosely(a: Sequence[Record], b: Sequence[Record]) -> dict[int, int]:
    """Match what can be matched of two recordings in order; positions left out have no partner."""
    matcher = difflib.SequenceMatcher(None, [r.key for r in a], [r.key for r in b], autojunk=False)
    return {block.a + n: block.b + n for block in matcher.get_matching_blocks() for n in range(block.size)}


class Merger:
    """Merges the values of aligned records; ``mismatches`` collects what could not be."""

    def __init__(self, sizes: Sequence[Sizes]) -> None:
        self._sizes = sizes
        self.mismatches: list[Mismatch] = []

    def merge(self, values: Sequence[Any], train: Sequence[Any], path: str) -> Any:
        """Merge one value seen under each of the sizes, and (at the first of them) in train mode."""
        first = values[0]
        everything = [*values, *train]
        if isinstance(first, Ref):
            if any(value != first for value in everything):
                self._fail(path, "different tensors are used")
            return first
        if isinstance(first, (list, tuple, dict, slice, Call)):
            return self._merge_container(values, train, path)
        if any(isinstance(value, (Ref, list, tuple, dict, slice, Call)) for value in everything):
            self._fail(path, f"an argument is {first!r} in one run and something else in another")
            return first
        merged = first
        if any(not _same(value, first) for value in values):
            expression = fit_size(values, self._sizes)
            if expression is None:
                self._fail(path, f"a value changes with the sizes of the input: {_listed(values)}")
            else:
                merged = expression
        for value in train:
            if not _same(value, first):
                if merged is not first:
                    self._fail(path, f"a value changes with both the batch size and the mode: {first} and {value}")
                else:
                    merged = Switch(value, first)
        return merged

    def _merge_container(self, values: Sequence[Any], train: Sequence[Any], path: str) -> Any:
        first = values[0]
        keys, build = _open(first)
        opened = [_open(value)[0] if type(value) is type(first) else None for value in (*values, *train)]
        targets = {value.target for value in (*values, *train) if isinstance(value, Call)}
        if len(targets) > 1 or any(other is None or other.keys() != keys.keys() for other in opened):
            self._fail(path, "the structure of an argument differs between runs")
            return first
        split = len(values)
        return build(
            {
                key: self.merge([o[key] for o in opened[:split] if o], [o[key] for o in opened[split:] if o], path)
                for key in keys
            }
        )

    def _fail(self, path: str, why: str) -> None:
        self.mismatches.append(Mismatch(path, why))


def _open(value: Any) -> tuple[dict[Any, Any], Callable[[dict[Any, Any]], Any]]:
    """A container as a dict of its parts, and the way back."""
    if isinstance(value, dict):
        return value, dict
    if isinstance(value, slice):
        return {"start": value.start, "stop": value.stop, "step": value.step}, lambda d: slice(*d.values())
    if isinstance(value, Call):
        parts = {"args": value.args, "kwargs": value.kwargs}
        return parts, lambda d: Call(value.target, d["args"], d["kwargs"])
    kind = type(value)
    return dict(enumerate(value)), lambda d: kind(d.values())


def overlay(merged: Any, evaluation: Any, train: Any) -> Any:
    """Add switches to an already merged value where a train run that aligns only loosely has another constant."""
    if isinstance(evaluation, (list, tuple, dict, slice, Call)):
        if type(train) is not type(evaluation) or type(merged) is not type(evaluation):
            return merged
        parts, build = _open(merged)
        before, after = _open(evaluation)[0], _open(train)[0]
        return build({k: overlay(v, before[k], after[k]) if k in after else v for k, v in parts.items()})
    if isinstance(evaluation, (bool, float)) and type(train) is type(evaluation) and not _same(train, evaluation):
        return Switch(train, evaluation)
    return merged


def fit_size(values: Sequence[Any], sizes: Sequence[Sizes]) -> SizeExpr | None:
    """Find ``factor * product + offset`` through all values, or None.

    Example:
        >>> print(fit_size([7, 10, 16], [{"batch": 2}, {"batch": 3}, {"batch": 5}]))
        3 * batch + 1
    """
    if any(type(value) is not int for value in values):
        return None
    symbols = list(sizes[0])
    products = [(symbol,) for symbol in symbols] + [(BATCH, symbol) for symbol in symbols if symbol != BATCH]
    for product in products:
        points = [_product(size, product) for size in sizes]
        other = next((n for n, point in enumerate(points) if point != points[0]), None)
        if other is None:
            continue
        factor = Fraction(values[other] - values[0], points[other] - points[0])
        offset = values[0] - factor * points[0]
        if factor and offset.denominator == 1 and all(factor * p + offset == v for p, v in zip(points, values, strict=True)):
            return SizeExpr(product, factor, int(offset))
    return None


def _product(size: Sizes, symbols: tuple[str, ...]) -> int:
    product = 1
    for symbol in symbols:
        product *= size[symbol]
    return product


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a == b or (isinstance(a, (float, complex)) and a != a and b != b))


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(str(value)[:40] for value in values)


def constants_agree(recorded: Sequence[dict[str, torch.Tensor]], name: str) -> bool:
    """Whether a captured constant had the same value in every run."""
    first, *others = [constants[name] for constants in recorded if name in constants]
    return all(
        other.shape == first.shape and other.dtype == first.dtype and (first.is_meta or torch.equal(first, other))
        for other in others
    )
