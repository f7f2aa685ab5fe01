"""Compares recordings of the same model, operation by operation."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from fxsplit._trace._records import Record


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Recordings disagree inside the module at ``path``."""

    path: str
    why: str

    def __str__(self) -> str:
        return f"{self.path or 'the model itself'}: {self.why}"


def pair_up(a: Sequence[Record], b: Sequence[Record], what: str) -> list[Mismatch]:
    """Compare two recordings; after a disagreement go on behind the innermost module open in both."""
    found: list[Mismatch] = []
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i].key == b[j].key:
            i, j = i + 1, j + 1
            continue
        common = _common(a[i].modules, b[j].modules)
        found.append(Mismatch(common[-1] if common else "", f"{what} it runs {_say(b[j])} where it ran {_say(a[i])}"))
        i, j = _leave(a, i, common), _leave(b, j, common)
    if i < len(a):
        found.append(Mismatch("", f"{what} it does not run {_say(a[i])}"))
    if j < len(b):
        found.append(Mismatch("", f"{what} it also runs {_say(b[j])}"))
    return found


def pair_loosely(a: Sequence[Record], b: Sequence[Record]) -> dict[int, int]:
    """Match what can be matched of two recordings, in order; positions left out have no partner."""
    matcher = difflib.SequenceMatcher(None, [r.key for r in a], [r.key for r in b], autojunk=False)
    return {block.a + n: block.b + n for block in matcher.get_matching_blocks() for n in range(block.size)}


def _common(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    length = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:length]


def _leave(records: Sequence[Record], index: int, modules: tuple[str, ...]) -> int:
    while index < len(records) and records[index].modules[: len(modules)] == modules:
        index += 1
    return index


def _say(record: Record) -> str:
    return f"{record.key[1]} (in {record.path or 'the model itself'})"
