"""Small tables as text for a terminal and as HTML for a notebook: inline styles, no style sheet, no script."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

_CELL = "padding:1px 8px;text-align:right"
_NAME = "padding:1px 8px;text-align:left;font-family:monospace"
_WIDTH, _HEIGHT, _BAR = 140, 18, 120


@dataclass(frozen=True)
class Markup:
    """HTML that goes into a cell as it is."""

    html: str


Cell = str | Markup


def text_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out in aligned columns, the first to the left and the others to the right.

    Example:
        >>> print(text_table(["part", "weights"], [["trunk", "7"]]))
        part   weights
        trunk        7
    """
    lines = [headers, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )


def html_table(
    headers: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str = "", foot: Sequence[Cell] | None = None
) -> str:
    """Return rows as one table, the first column as names and ``foot`` as the last row; text is escaped.

    Example:
        >>> "&lt;a&gt;" in html_table(["part", "weights"], [["<a>", "7"]])
        True
    """
    title = f"<caption style='caption-side:top;text-align:left'>{html.escape(caption)}</caption>" if caption else ""
    head = _line("th", headers)
    body = "".join(_line("td", row) for row in rows)
    last = "" if foot is None else f"<tfoot>{_line('td', foot)}</tfoot>"
    return f"<table style='border-collapse:collapse'>{title}<thead>{head}</thead><tbody>{body}</tbody>{last}</table>"


def folded(summary: str, inside: str) -> str:
    """Return HTML that shows ``summary`` and, when it is clicked on, ``inside``."""
    return f"<details><summary>{html.escape(summary)}</summary>{inside}</details>"


def bar(share: float) -> Markup:
    """Draw a share of 1 as a bar."""
    inside = f"<div style='width:{_BAR * share:.0f}px;height:0.8em;background:#4a7fb5'></div>"
    return Markup(f"<div style='width:{_BAR}px;background:#8883'>{inside}</div>")


def sparkline(values: Sequence[float]) -> Markup:
    """Draw values over their number as a small area from zero on; nothing for fewer than two."""
    if len(values) < 2:
        return Markup("")
    # More points than pixels would only make the page larger.
    values = values[:: -(-len(values) // _WIDTH)]
    top = max(values) or 1
    across = _WIDTH / (len(values) - 1)
    points = " ".join(f"{i * across:.1f},{_HEIGHT * (1 - value / top):.1f}" for i, value in enumerate(values))
    return Markup(
        f"<svg width='{_WIDTH}' height='{_HEIGHT}' viewBox='0 0 {_WIDTH} {_HEIGHT}' preserveAspectRatio='none'>"
        f"<polygon points='0,{_HEIGHT} {points} {_WIDTH},{_HEIGHT}' fill='#4a7fb5' fill-opacity='0.6'/></svg>"
    )


def _line(tag: str, cells: Sequence[Cell]) -> str:
    styled = [(_NAME if i == 0 else _CELL, cell) for i, cell in enumerate(cells)]
    return "<tr>" + "".join(f"<{tag} style='{style}'>{_content(cell)}</{tag}>" for style, cell in styled) + "</tr>"


def _content(cell: Cell) -> str:
    return cell.html if isinstance(cell, Markup) else html.escape(cell)
