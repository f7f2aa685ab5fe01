"""Integers that follow the sizes of the inputs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

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


def fit_size(values: Sequence[Any], sizes: Sequence[Sizes]) -> SizeExpr | None:
    """Find ``factor * product + offset`` through all values, or None.

    The products are the single symbols and those of two of them.

    Example:
        >>> print(fit_size([7, 10, 16], [{"batch": 2}, {"batch": 3}, {"batch": 5}]))
        3 * batch + 1
    """
    if any(type(value) is not int for value in values):
        return None
    symbols = tuple(sizes[0])
    return _fit(tuple(values), symbols, tuple(tuple(size[symbol] for symbol in symbols) for size in sizes))


@functools.lru_cache(maxsize=4096)  # the layers of a model ask the same
def _fit(values: tuple[int, ...], symbols: tuple[str, ...], numbers: tuple[tuple[int, ...], ...]) -> SizeExpr | None:
    sizes = [dict(zip(symbols, size, strict=True)) for size in numbers]
    for product in [*((symbol,) for symbol in symbols), *itertools.combinations(symbols, 2)]:
        points = [_product(size, product) for size in sizes]
        other = next((n for n, point in enumerate(points) if point != points[0]), None)
        if other is None:
            continue
        factor = Fraction(values[other] - values[0], points[other] - points[0])
        offset = values[0] - factor * points[0]
        fits = all(factor * point + offset == value for point, value in zip(points, values, strict=True))
        if factor and fits and offset.denominator == 1:
            return SizeExpr(product, factor, int(offset))
    return None


def _product(size: Sizes, symbols: tuple[str, ...]) -> int:
    product = 1
    for symbol in symbols:
        product *= size[symbol]
    return product
