"""Sums rows up into the table of the README."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.coverage._measure import Row
from tests.zoo.measure import EXACT

_REJECTED = "rejected by the model"


def table(rows: Sequence[Row]) -> str:
    """Markdown: one line per zoo, device and tracer."""
    lines = [
        "| zoo | weights | tracer | traced | eval exact at other batches | train step exact | models split after every "
        "tried block | cuts split | fresh heads |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for zoo in dict.fromkeys(row["zoo"] for row in rows):
        for real in (True, False):
            chosen = [row for row in rows if row["zoo"] == zoo and row["real"] == real and row["runs"]]
            if chosen:
                lines.append(_line(zoo, real, chosen))
                lines += _rival_lines(zoo, real, chosen)
    return "\n".join(lines)


def failures(rows: Iterable[Row]) -> list[str]:
    """Everything that is not as it should be, one line each."""
    found: list[str] = []
    for row in rows:
        name = f"{row['zoo']}/{row['name']} ({'real' if row['real'] else 'meta'})"
        if not row["runs"]:
            found.append(f"{name}: does not run by itself: {row['error']}")
            continue
        if not row["traced"]:
            found.append(f"{name}: not traced: {row['error']}")
            continue
        found += [f"{name}: eval at {b}: {how}" for b, how in row["eval"].items() if how not in (EXACT, _REJECTED)]
        if row["train"] not in ("", EXACT):
            found.append(f"{name}: train: {row['train']}")
        found += [f"{name}: cut {problem}" for problem in row["cut_errors"]]
        if row["fresh"] not in ("", "drawn"):
            found.append(f"{name}: fresh: {row['fresh']}")
        if row["traced"] and row["cuts"] == 0:
            found.append(f"{name}: no cuts")
        found += [f"{name}: kept whole: {path}" for path in row["coarse"]]
        found += [f"{name}: warning: {warning}" for warning in row["warnings"]]
    return found


def _line(zoo: str, real: bool, rows: Sequence[Row]) -> str:
    traced = [row for row in rows if row["traced"]]
    steps = [row["train"] for row in traced if row["train"] and row["train"] != "the model raises in train mode"]
    reported = sum(step.startswith("reported") for step in steps)
    exact_steps = f"{_share(steps, EXACT.__eq__)}{f' ({reported} more reported)' if reported else ''}"
    fresh = [row["fresh"] for row in traced if row["fresh"]]
    cells = [
        zoo,
        _weights(real),
        "**fxsplit**",
        _share(rows, lambda row: row["traced"]),
        _share(traced, lambda row: _is_exact(row["eval"])),
        exact_steps if real else "-",
        _share(traced, lambda row: 0 < row["tried"] == row["split"]),
        f"{sum(row['split'] for row in traced)}/{sum(row['tried'] for row in traced)}",
        _share(fresh, "drawn".__eq__) if fresh else "-",
    ]
    return f"| {' | '.join(cells)} |"


def _rival_lines(zoo: str, real: bool, rows: Sequence[Row]) -> list[str]:
    lines: list[str] = []
    for name in dict.fromkeys(name for row in rows for name in row["rivals"]):
        tried = [row["rivals"][name] for row in rows if name in row["rivals"]]
        cells = [
            zoo,
            _weights(real),
            name,
            _share(tried, lambda found: found["traced"] == EXACT),
            _share(tried, lambda found: found.get("eval") == EXACT),
            _share(tried, lambda found: found.get("train") == EXACT) if real else "-",
            *"---",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _is_exact(by_batch: dict[str, str]) -> bool:
    return EXACT in by_batch.values() and all(how in (EXACT, _REJECTED) for how in by_batch.values())


def _weights(real: bool) -> str:
    return "real" if real else "meta: shapes only"


def _share(items: Sequence[Any], holds: Callable[[Any], bool]) -> str:
    return f"{sum(map(holds, items))}/{len(items)}"
