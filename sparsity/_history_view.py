"""How a history prints and displays: a row for each component and each layer, over all updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparsity._table import Cell, folded, html_table, sparkline, text_table

if TYPE_CHECKING:
    from sparsity._history import History

_HEADERS = ("dropped", "grown", "active", "density", "explored")


def history_text(history: History) -> str:
    """Return a table of the components, with what happened to them in all updates together."""
    if not len(history):
        return "no updates"
    title, rows = _title(history), history.rows()
    cells = [[name, *_cells(own)] for name, own in _grouped(rows, "component").items()]
    return f"{title}\n{text_table(['component', *_headers(rows)], cells)}"


def history_html(history: History) -> str:
    """Return the same as HTML, with the number of weights dropped over time; layers are folded."""
    if not len(history):
        return "<p>no updates</p>"
    parts, layers = _html(history.rows(), "component"), _html(history.layer_rows(), "path")
    return f"<div><p>{_title(history)}</p>{parts}{folded('layers', layers)}</div>"


def _html(rows: Sequence[dict[str, Any]], key: str) -> str:
    cells: list[list[Cell]] = [
        [name, *_cells(own), sparkline([row["dropped"] for row in own])] for name, own in _grouped(rows, key).items()
    ]
    return html_table([key, *_headers(rows), "dropped over updates"], cells)


def _title(history: History) -> str:
    updates = history.updates
    first, last = updates[0], updates[-1]
    if len(updates) == 1:
        return f"1 update at step {first.step}, fraction {first.fraction:.4f}"
    fractions = f"fraction {first.fraction:.4f} to {last.fraction:.4f}"
    return f"{len(updates)} updates from step {first.step} to {last.step}, {fractions}"


def _headers(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in _HEADERS if name in rows[0]]


def _grouped(rows: Sequence[dict[str, Any]], key: str) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _cells(rows: Sequence[dict[str, Any]]) -> list[str]:
    last = rows[-1]
    sums = [f"{sum(row[name] for row in rows):,}" for name in ("dropped", "grown")]
    shares = [f"{last[name]:.4f}" for name in ("density", "explored") if name in last]
    return [*sums, f"{last['active']:,}", *shares]
