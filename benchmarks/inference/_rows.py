"""Results as rows of one CSV file: one per engine, network, batch size and number of threads."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

COLUMNS = (
    *("engine", "version", "net", "label", "family", "role", "allocation", "sparsity", "batch", "threads"),
    *("status", "error", "reference", "coverage", "prepare_s"),
    *("median_ms", "p25_ms", "p75_ms", "fastest_ms", "calls", "rounds", "throughput", "others"),
    *("against_own_single", "against_onnxruntime_single", "own_single_ms", "onnxruntime_single_ms"),
    *("parameters", "nonzeros", "flops_dense", "flops_masked", "paper_throughput", "paper_ms", "paper_spread_ms"),
    "paper_against_single",
)
_TEXT = {
    *("engine", "version", "net", "label", "family", "role", "allocation", "status", "reference"),
}
_KEY = ("engine", "net", "batch", "threads")
OK = "ok"


def read(path: Path) -> list[Row]:
    """Read rows, numbers as floats and empty cells as None; no rows if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: _parse(name, text) for name, text in row.items()} for row in csv.DictReader(file)]


def merge(path: Path, rows: Sequence[Row]) -> None:
    """Add rows to a file, in place of those it has for the same engine, network, batch size and threads."""
    new = {_key(row) for row in rows}
    kept = [row for row in read(path) if _key(row) not in new]
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])
    os.replace(partial, path)


def find(rows: Iterable[Row], **values: Any) -> Row | None:
    """Return the first row that was measured and has these values."""
    for row in rows:
        if row["status"] == OK and all(row[name] == value for name, value in values.items()):
            return row
    return None


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(float(row[name]) if name in ("batch", "threads") else row[name] for name in _KEY)


def _parse(name: str, text: str) -> Any:
    if name in _TEXT:
        return text
    return float(text) if text else None
