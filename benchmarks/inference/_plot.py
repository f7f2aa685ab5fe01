"""The paper's Figure 8 from our rows: latency over sparsity, and what the FLOPs alone would promise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.inference._rows import Row, find
from benchmarks.inference._table import TITLES

_COLOURS = {
    "sparsity": "#1b7f5c",
    "onnxruntime": "#d9a400",
    "torch.compile": "#8a6fb0",
    "torch": "#999999",
    "deepsparse": "#d8572a",
}
_LINES = {"erk": "-", "uniform": ":"}


def plot(rows: Sequence[Row], family: str, batch: int, threads: int, path: Path) -> bool:
    """Draw latency over sparsity for one family, batch size and number of threads.

    Args:
        rows: Results; those of other families are left out.
        family: Of networks.
        batch: Batch size.
        threads: Number of threads.
        path: Where to write; the ending says the format.

    Returns:
        Whether there was anything to draw: networks of two sparsities at least.
    """
    alike = [r for r in rows if (r["family"], r["batch"], r["threads"]) == (family, batch, threads)]
    sparse = sorted((row for row in alike if row["sparsity"]), key=lambda row: row["sparsity"])
    if len({row["sparsity"] for row in sparse if find([row])}) < 2:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    allocations = [a for a in _LINES if any(row["allocation"] == a for row in sparse)]
    for engine, title in TITLES.items():
        for allocation in allocations:
            line = [r for r in sparse if find([r], engine=engine, allocation=allocation)]
            label = f"{title.strip('`')}, {_name(allocation)}"
            _draw(axes, line, [row["median_ms"] for row in line], label, _COLOURS[engine], _LINES[allocation])
    single = find(alike, role="single", engine="onnxruntime")
    if single is not None:
        promised = [row for row in sparse if row["engine"] == "onnxruntime" and row["allocation"] == allocations[0]]
        ms = [single["median_ms"] * row["flops_masked"] / single["flops_dense"] for row in promised]
        _draw(axes, promised, ms, f"FLOPs alone would give, {_name(allocations[0])}", "#2f6db5", "-.")
    for engine, style in (("onnxruntime", "--"), ("deepsparse", (0, (1, 1)))):
        dense = find(alike, role="single", engine=engine)
        if dense is not None:
            label = f"dense single, {TITLES[engine]}"
            axes.axhline(dense["median_ms"], color=_COLOURS[engine], linestyle=style, linewidth=1.3, label=label)
    axes.set_yscale("log")
    axes.set_xticks(sorted({row["sparsity"] for row in sparse}))
    axes.set_xlabel("sparsity")
    axes.set_ylabel(f"milliseconds per batch of {batch}")
    axes.set_title(f"{sparse[0]['label'].split(', S=')[0]}: {threads} thread{'s' if threads > 1 else ''}", fontsize=10)
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.savefig(path, dpi=130)
    return True


def _draw(axes: Any, line: Sequence[Row], ms: Sequence[float], label: str, colour: str, style: str) -> None:
    if line:
        axes.plot([row["sparsity"] for row in line], ms, style, color=colour, marker="o", markersize=3, label=label)


def _name(allocation: str) -> str:
    return "ERK" if allocation == "erk" else allocation
