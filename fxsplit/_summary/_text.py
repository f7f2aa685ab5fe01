"""How a summary prints and displays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxsplit._table import html_table, human, text_table

if TYPE_CHECKING:
    from fxsplit._summary._ledger import Cost
    from fxsplit._summary._totals import Summary

_ROWS = ("component", "path", "ops", "output", "params", "nonzeros", "density", "FLOPs dense", "FLOPs masks")
_TOTALS = ("", "params", "nonzeros", "density", "FLOPs dense", "FLOPs uniform", "FLOPs masks")
_CONVENTIONS = """\
FLOPs: 2 x MAC of one forward pass per sample, of convolution and linear weights only.
FLOPs dense: without masks.
FLOPs uniform: FLOPs dense x density of the maskable weights, the convention of the paper's tables.
FLOPs masks: every layer's FLOPs x the density of its own mask, which is what these masks compute.
nonzeros: parameters that no mask holds at zero. density: nonzeros / params."""


def as_text(summary: Summary) -> str:
    """Table of blocks, table of totals and ratios, and the conventions."""
    rows = [row for row in _rows(summary) if _shown(row[0])]
    more = f"\n(heads.1 ... heads.{summary.heads - 1} have the same blocks)" if summary.heads > 1 else ""
    return f"{text_table(_ROWS, rows)}{more}\n\n{text_table(_TOTALS, _totals(summary))}\n\n{_notes(summary)}"


def as_html(summary: Summary) -> str:
    """The same for a notebook; the blocks of every head are there, folded away."""
    rows = _rows(summary)
    blocks = html_table(_ROWS, rows)
    totals = html_table(_TOTALS, _totals(summary), caption=_notes(summary))
    return f'<div style="color:#111;background:#fff">{totals}<details><summary>blocks</summary>{blocks}</details></div>'


def _shown(component: str) -> bool:
    return not component.startswith("heads.") or component == "heads.0"


def _rows(summary: Summary) -> list[list[str]]:
    return [
        [
            row.component,
            row.path,
            str(row.ops),
            "" if row.shape is None else "x".join(map(str, row.shape)),
            human(row.cost.params),
            human(row.cost.nonzeros),
            _density(row.cost),
            human(row.cost.flops),
            human(row.cost.flops_masked),
        ]
        for row in summary.rows
    ]


def _totals(summary: Summary) -> list[list[str]]:
    parts = [(name, cost) for name, cost in summary.parts.items() if name != "vote"]
    lines = [_line(name, cost) for name, cost in parts] if summary.heads else []
    lines.append(_line("all", summary.total))
    if summary.heads:
        lines.append(_line("dense single", summary.single))
    lines.append(_ratios("all / dense single", summary, 1))
    if summary.heads > 1:
        lines.append(_ratios(f"all / ensemble of {summary.heads}", summary, summary.heads))
    return lines


def _line(name: str, cost: Cost) -> list[str]:
    uniform = cost.flops * cost.maskable_density
    numbers = (cost.flops, uniform, cost.flops_masked)
    return [name, human(cost.params), human(cost.nonzeros), _density(cost), *(human(round(n)) for n in numbers)]


def _ratios(name: str, summary: Summary, models: int) -> list[str]:
    params = summary.total.params / summary.single.params if summary.single.params else 1.0
    flops = (summary.dense_flops_ratio, summary.uniform_flops_ratio, summary.masked_flops_ratio)
    sizes = (params, summary.parameter_ratio)
    return [name, *(f"{n / models:.3f}x" for n in sizes), "", *(f"{n / models:.3f}x" for n in flops)]


def _density(cost: Cost) -> str:
    return f"{cost.density:.3f}" if cost.params else ""


def _notes(summary: Summary) -> str:
    other = f"\nNot included: {human(summary.total.other)} FLOPs without a weight (attention products)."
    return _CONVENTIONS + (other if summary.total.other else "")
