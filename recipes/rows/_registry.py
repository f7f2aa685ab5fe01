"""All rows, by name."""

from __future__ import annotations

import fnmatch
from functools import lru_cache

from fxsplit._errors import near_matches
from recipes._errors import RecipeError
from recipes.rows import _cifar, _imagenet, _language
from recipes.rows._recipe import Row

PLACES = {
    "table2": _cifar.table2,
    "table3": _imagenet.table3,
    "table4": _language.table4,
    "table6": _cifar.table6,
    "table15": _language.table15,
    "table16": _cifar.table16,
    "table17": _cifar.table17,
    "figure3": _cifar.figure3,
    "figure5": _cifar.figure5,
    "figure6": _cifar.figure6,
    "figure7": _cifar.figure7,
}

_ELSEWHERE = {"table5": " Table 5 is of runs of table4: python -m recipes evaluate ROW --tasks."}
"""Tables that are made by another command."""


@lru_cache(maxsize=1)
def all_rows() -> dict[str, Row]:
    """Return all rows by name, in the order of the paper's tables, then figures.

    Example:
        >>> all_rows()["table2/treenet-m3"].label
        'TreeNet (M=3)'
    """
    return {row.name: row for make in PLACES.values() for row in make()}


def find(name: str) -> Row:
    """Return the row of a name.

    Raises:
        RecipeError: There is none.
    """
    rows = all_rows()
    if name not in rows:
        raise RecipeError(f"Unknown row {name!r}.{near_matches(name, rows) or ' List them: python -m recipes list.'}")
    return rows[name]


def matching(pattern: str = "*") -> list[Row]:
    """Return the rows whose name a pattern matches: a glob, a table's name, or a part of a name.

    Raises:
        RecipeError: There is none.

    Example:
        >>> [row.name for row in matching("table2/*-m5-*")]
        ['table2/neurotrails-m5-s0.9']
    """
    rows = all_rows()
    found = [row for name, row in rows.items() if fnmatch.fnmatch(name, pattern)]
    found = found or [row for name, row in rows.items() if pattern in name]
    if not found:
        hint = _ELSEWHERE.get(pattern) or near_matches(pattern, [*PLACES, *rows]) or f" There are {', '.join(PLACES)}."
        raise RecipeError(f"No row matches {pattern!r}.{hint}")
    return found


def of_place(place: str) -> list[Row]:
    """Return the rows of a table or figure: ``2``, ``table2``, ``figure6``.

    Raises:
        RecipeError: There is no such table.
    """
    name = f"table{place}" if place.isdigit() else place
    if name not in PLACES:
        hint = _ELSEWHERE.get(name, near_matches(name, PLACES))
        raise RecipeError(f"There is no {name!r}. There are {', '.join(PLACES)}.{hint}")
    return [row for row in all_rows().values() if row.place == name]


def home(row: Row, preset: str) -> Row:
    """Return the first row with the same recipe: the same network in two figures is trained once.

    Example:
        >>> home(find("figure6/neurotrails-m3"), "paper").name
        'table2/neurotrails-m3-s0.8'
    """
    recipe = row.recipe(preset)
    return next(other for other in all_rows().values() if other.presets.get(preset) == recipe)
