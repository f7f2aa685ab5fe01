"""Finds out whether a model that changes itself in forward does something else when it is called again."""

from __future__ import annotations

from typing import Any

from fxsplit._trace._align import Mismatch, pair_up
from fxsplit._trace._merge import differing_constants, same_tensor, same_value
from fxsplit._trace._nested import combine, map_value
from fxsplit._trace._recorder import Recorder
from fxsplit._trace._records import Ref

_WHAT = "when it is called again"


def differences(first: Recorder, again: Recorder) -> list[Mismatch]:
    """Where a second run on the same inputs did something else; empty if it returned the same.

    A cache that the first run filled changes what is computed, but not what is returned.
    """
    outputs = (map_value(run.output, lambda leaf: None if isinstance(leaf, Ref) else leaf) for run in (first, again))
    returned = zip(first.returned, again.returned, strict=False)
    same = len(first.returned) == len(again.returned) and all(same_tensor(a, b) for a, b in returned)
    if same and not _unequal(*outputs):
        return []
    found = pair_up(first.records, again.records, _WHAT)
    if found:
        return found
    for one, other in zip(first.records, again.records, strict=True):
        values = _unequal((one.args, one.kwargs), (other.args, other.kwargs))
        found += [Mismatch(one.owner, f"{_WHAT} it uses {b!r} where it used {a!r}") for a, b in values]
    found += differing_constants(first.records, [first.constants, again.constants])
    return found or [Mismatch("", f"{_WHAT} it returns something else")]


def _unequal(a: Any, b: Any) -> list[tuple[Any, Any]]:
    """The pairs of values at one place of two nested values that are not the same."""
    found: list[tuple[Any, Any]] = []

    def leaf(one: Any, two: Any) -> Any:
        if not same_value(one, two):
            found.append((one, two))
        return one

    combine((a, b), leaf, lambda: found.append(("one structure", "another")))
    return found
