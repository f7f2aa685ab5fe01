"""Rows as tables: plain for the terminal, Markdown for the README."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.inference._compare import DENSE_ENGINE
from benchmarks.inference._rows import OK, Row, find
from fxsplit._table import text_table

OURS, PAPERS = "sparsity", "deepsparse"
TITLES = {
    "sparsity": "`sparsity.compile`",
    "onnxruntime": "onnxruntime",
    "torch.compile": "torch.compile",
    "torch": "torch eager",
    "deepsparse": "DeepSparse 1.8",
}
LEGEND = (
    "Median milliseconds per batch, and in brackets the speed relative to the dense single model in the same engine / "
    "in onnxruntime (the median ratio within the same round of an interleaved run). Last columns: ours relative to the "
    "dense ensemble in onnxruntime and to the same network in DeepSparse, both through the dense single model in "
    "onnxruntime, and the paper's own numbers with DeepSparse."
)


def text(rows: Sequence[Row]) -> str:
    """Lay out rows for a terminal, one line per engine and network."""
    headers = ("network", "engine", "ms", "quartiles", "items/s", "own single", "onnxruntime single", "error", "others")
    return text_table(headers, [_line(row) for row in rows if row["status"] == OK])


def markdown(rows: Sequence[Row]) -> str:
    """Lay out rows for the README: one table per family, batch size and number of threads, one line per network."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=_place):
        groups.setdefault((row["family"], int(row["batch"]), int(row["threads"])), []).append(row)
    tables = []
    for (_, batch, threads), members in groups.items():
        title = f"Batch {batch}, {threads} thread{'s' if threads > 1 else ''}:"
        tables.append(f"{title}\n\n{_family_table(members)}")
    return "\n\n".join([*tables, *_notes(rows)])


def _place(row: Row) -> tuple[Any, ...]:
    """Families and settings as they come in the alphabet, dense networks before sparse ones."""
    roles = ("single", "ensemble", "neurotrails")
    return row["family"], row["batch"], -row["threads"], roles.index(row["role"]), row["allocation"], row["sparsity"]


def _line(row: Row) -> tuple[Any, ...]:
    return (
        row["label"],
        row["engine"],
        f"{row['median_ms']:.3g}",
        f"{row['p25_ms']:.3g} - {row['p75_ms']:.3g}",
        f"{row['throughput']:.4g}",
        _times(row.get("against_own_single")),
        _times(row.get("against_onnxruntime_single")),
        f"{row['error']:.1e}",
        f"{100 * row['others']:.0f}%",
    )


def _family_table(rows: Sequence[Row]) -> str:
    engines = [engine for engine in TITLES if find(rows, engine=engine)]
    papers = any(row.get("paper_ms") and row["batch"] == 1 for row in rows)  # the paper's batch size
    ours = OURS in engines
    headers = ["network", *(TITLES[engine] for engine in engines)]
    headers += ["ours : dense ensemble", "ours : DeepSparse"] if ours else []
    headers += ["paper, ms", "paper : its single"] if papers else []
    lines = [headers, ["---"] * len(headers)]
    for net in dict.fromkeys(row["net"] for row in rows):
        of_net = [row for row in rows if row["net"] == net]
        cells = [of_net[0]["label"], *(_cell(find(of_net, engine=engine)) for engine in engines)]
        if ours:
            cells += [_times(value) for value in against(rows, net)]
        if papers:
            row = of_net[0]
            cells += [_paper(row), _times(row.get("paper_against_single"))]
        lines.append([cell or "-" for cell in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def against(rows: Sequence[Row], net: str) -> tuple[float | None, float | None]:
    """Return how much faster our runtime is than the dense ensemble in onnxruntime, and than DeepSparse on this net.

    All three were measured in turns with the dense single model in onnxruntime, so their ratios to it are divided.
    """
    ours = find(rows, net=net, engine=OURS)
    if ours is None:
        return None, None
    ensemble = find(rows, role="ensemble", engine=DENSE_ENGINE)
    return _quotient(ours, ensemble), _quotient(ours, find(rows, net=net, engine=PAPERS))


def _quotient(ours: Row, other: Row | None) -> float | None:
    column = "against_onnxruntime_single"
    if other is None or not ours.get(column) or not other.get(column):
        return None
    return ours[column] / other[column]


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    own, dense = row.get("against_own_single"), row.get("against_onnxruntime_single")
    return f"{row['median_ms']:.3g} ({_times(own) or '-'} / {_times(dense) or '-'})"


def _paper(row: Row) -> str:
    return f"{row['paper_ms']:.2f} ± {row['paper_spread_ms']:.2f}" if row.get("paper_ms") else "-"


def _times(ratio: float | None) -> str | None:
    if ratio is None:
        return None
    return f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = [LEGEND]
    failed = [
        f"* {row['label']}, {row['engine']}, batch {row['batch']:g}: {row['status']}."
        for row in rows
        if row["status"] != OK
    ]
    if failed:
        notes.append("Not timed:\n\n" + "\n".join(dict.fromkeys(failed)))
    errors = [row["error"] for row in rows if row["status"] == OK]
    if errors:
        notes.append(f"Largest relative error of an output against torch in double precision: {max(errors):.1e}.")
    return notes
