"""Finished runs, gathered into the tables of the paper, with the paper's numbers beside ours."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes._tables import mean_std
from recipes.cli._fitting import check, fitting, refusal
from recipes.cli._folder import RESULT
from recipes.rows import Row, find, of_place
from recipes.training import read_json

MISSING = "-"


@dataclass(frozen=True)
class Runs:
    """The finished runs of a row.

    Args:
        row: The row.
        results: Contents of ``result.json``, a seed each.
    """

    row: Row
    results: Sequence[dict[str, Any]]

    def metric(self, name: str, state: str) -> list[float]:
        """Return a metric of every seed; NaN where it has none."""
        values = (result["metrics"].get(state, {}).get(name) for result in self.results)
        return [math.nan if value is None else value for value in values]

    def flops(self, kind: str, convention: str) -> float | None:
        """Return FLOPs of training or inference under a convention, the same for every seed but for global pruning."""
        if not self.results:
            return None
        values = [
            result["training_flops"][convention]
            if kind == "training"
            else result["costs"][f"inference_flops_{convention}"]
            for result in self.results
        ]
        return sum(values) / len(values)


def finished(row: Row, preset: str, out: Path, changes: Sequence[str] = ()) -> Runs:
    """Read the finished runs of a row, changed as far as it has such settings; none of a row without the preset."""
    if refusal(row, preset, changes) is not None:
        return Runs(row, [])
    first = fitting(row, preset, changes).folder(out, 0).parent
    files = sorted(first.glob(f"seed*/{RESULT}"), key=lambda file: int(file.parent.name.removeprefix("seed")))
    return Runs(row, [read_json(file) for file in files])


def without(rows: Sequence[Row], preset: str, out: Path, changes: Sequence[str] = ()) -> list[Row]:
    """Return the rows that have no finished run."""
    return [row for row in rows if not finished(row, preset, out, changes).results]


def table(
    place: str, preset: str, out: Path, *, state: str = "last", vote: str = "prob", changes: Sequence[str] = ()
) -> tuple[list[str], list[list[str]]]:
    """Lay a table of the paper out: headers and cells, mean and standard deviation over seeds.

    Args:
        place: ``2``, ``table2`` or ``figure6``.
        preset: Which runs.
        out: Folder of all runs.
        state: ``last`` or ``best``, the latter chosen on the validation part.
        vote: ``prob`` or ``logit``: what the heads average.
        changes: Settings that the runs were changed by; each row takes those that it has.

    Raises:
        RecipeError: There is no such table, or none of its rows has a setting.
    """
    check(place, preset, changes)
    rows = [finished(row, preset, out, changes) for row in of_place(place)]
    language = all(row.row.presets["paper"].language for row in rows)
    columns = _LANGUAGE if language else _VISION
    headers = ["system", "seeds"]
    for column in columns:
        headers += [column.title, "paper"]
    # The paper prints sizes in Table 15 only, which compares networks of one size.
    sizes = any(row.row.paper.parameters is not None for row in rows)
    headers += [
        "parameters",
        *(["paper"] if sizes else []),
        "nonzero",
        "inference, uniform",
        "masks",
        "paper",
        "training, uniform",
        "masks",
        "paper",
    ]
    cells = []
    for runs in rows:
        reference = finished(find(runs.row.reference), preset, out, changes) if runs.row.reference else runs
        cells.append(_cells(runs, reference, columns, state, vote, sizes))
    return headers, cells


@dataclass(frozen=True)
class _Column:
    title: str
    metric: str
    show: Callable[[float], str]
    paper: Callable[[Any], float | None]
    printed: Callable[[float], str]


_DISAGREEMENT = _Column(
    "disagreement %", "disagreement", lambda v: f"{100 * v:.1f}", lambda p: p.disagreement, lambda v: f"{v:.1f}"
)
_VISION = (
    _Column("accuracy %", "accuracy_{}", lambda v: f"{100 * v:.2f}", lambda p: p.accuracy, lambda v: f"{v:.1f}"),
    _Column("NLL", "nll_{}", lambda v: f"{v:.3f}", lambda p: p.nll, lambda v: f"{v:.3f}"),
    _Column("ECE", "ece_{}", lambda v: f"{v:.3f}", lambda p: p.ece, lambda v: f"{v:.3f}"),
    _Column(
        "disagreement %", "disagreement", lambda v: f"{100 * v:.1f}", lambda p: p.disagreement, lambda v: f"{v:.1f}"
    ),
)
_LANGUAGE = (
    _Column("perplexity", "perplexity_{}", lambda v: f"{v:.2f}", lambda p: p.perplexity, lambda v: f"{v:.2f}"),
    _Column(
        "disagreement %", "disagreement", lambda v: f"{100 * v:.1f}", lambda p: p.disagreement, lambda v: f"{v:.1f}"
    ),
)


def _cells(runs: Runs, reference: Runs, columns: Sequence[_Column], state: str, vote: str, sizes: bool) -> list[str]:
    paper, results = runs.row.paper, runs.results
    cells = [runs.row.label, str(len(results)) if results else MISSING]
    for column in columns:
        published = column.paper(paper)
        cells += [
            _spread(runs.metric(column.metric.format(vote), state), column.show),
            MISSING if published is None else column.printed(published),
        ]
    cost = results[0]["costs"] if results else {}
    cells += [_count(cost.get("parameters")), *([_count(paper.parameters)] if sizes else [])]
    cells.append(_count(cost.get("nonzeros")))
    for kind, published in (("inference", paper.inference), ("training", paper.train)):
        one = reference.flops(kind, "dense")
        cells += [_ratio(runs.flops(kind, convention), one) for convention in ("uniform", "masks")]
        cells.append(MISSING if published is None else f"{published:.2f}x")
    return cells


def _spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    if not values or any(math.isnan(value) for value in values):
        return MISSING
    mean, std = mean_std(values)
    return show(mean) if math.isnan(std) else f"{show(mean)} ± {show(std)}"


def _count(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value / 1e6:.2f}M" if value >= 1e6 else f"{value / 1e3:.1f}k"


def _ratio(value: float | None, one: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:.2e}" if one is None else f"{value / one:.2f}x"


def markdown(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Lay headers and cells out as a table of Markdown."""
    lines = [headers, ["---"] * len(headers), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_json(place: str, preset: str, out: Path, changes: Sequence[str] = ()) -> str:
    """Return all that is known of the finished runs of a table."""
    check(place, preset, changes)
    found = {row.name: list(finished(row, preset, out, changes).results) for row in of_place(place)}
    return json.dumps(found, indent=1)
