"""Small tables, as text for a terminal and as HTML for a notebook: self-contained, no style sheet, no script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from numbers import Number

from fxsplit._errors import FxSplitError

_PAPER = "color:#111;background:#fff;"
_CELL = f"padding:2px 8px;border-bottom:1px solid #ddd;{_PAPER}"
_CAPTION = f"caption-side:top;text-align:left;white-space:pre-line;padding:2px 8px;{_PAPER}"


def human(value: float) -> str:
    """Shorten a count: ``human(25_557_032)`` is ``'25.6M'``; below 1000 integers stay exact."""
    size = float(abs(value))
    for suffix, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # 999 950 would otherwise print as '1000.0k'
        if size >= unit * 0.99995:
            return f"{value / unit:.3g}{suffix}" if size < 99.95 * unit else f"{value / unit:.0f}{suffix}"
    return f"{value:.3g}" if isinstance(value, float) and value != int(value) else f"{int(value)}"


def text_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay rows out in aligned columns: numbers right, everything else left.

    Args:
        headers: One title per column.
        rows: Cells, each row as long as ``headers``. ``None`` prints as an empty cell.

    Raises:
        FxSplitError: A row has another number of cells than there are headers.

    Example:
        >>> print(text_table(["path", "params"], [["fc", 10], ["conv1", 9408]]))
        path   params
        fc         10
        conv1    9408
    """
    body = _checked(headers, rows)
    right = _numeric_columns(headers, body)
    lines = [list(headers), *([_show(cell) for cell in row] for row in body)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]

    def pad(line: Sequence[str]) -> str:
        cells = zip(line, widths, right, strict=True)
        return "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in cells).rstrip()

    return "\n".join(map(pad, lines))


def html_table(headers: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """Render rows as one ``<table>`` with inline styles; every text is escaped, numbers are right-aligned.

    Args:
        headers: One title per column.
        rows: Cells, each row as long as ``headers``. ``None`` renders as an empty cell.
        caption: Shown above the table; line breaks are kept.

    Raises:
        FxSplitError: A row has another number of cells than there are headers.

    Example:
        >>> "&lt;lambda&gt;" in html_table(["name"], [["<lambda>"]])
        True
    """
    body = _checked(headers, rows)
    styles = [f"{_CELL}text-align:{'right' if r else 'left'}" for r in _numeric_columns(headers, body)]

    def line(tag: str, cells: Iterable[str]) -> str:
        styled = zip(cells, styles, strict=True)
        return "<tr>" + "".join(f'<{tag} style="{style}">{escape(cell)}</{tag}>' for cell, style in styled) + "</tr>"

    title = f'<caption style="{_CAPTION}">{escape(caption)}</caption>' if caption else ""
    head = f"<thead>{line('th', headers)}</thead>"
    rest = "".join(line("td", map(_show, row)) for row in body)
    return f'<table style="border-collapse:collapse;font-size:12px">{title}{head}<tbody>{rest}</tbody></table>'


def _checked(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> list[list[object]]:
    body = [list(row) for row in rows]
    for number, row in enumerate(body):
        if len(row) != len(headers):
            raise FxSplitError(f"table: row {number} has {len(row)} cells, but there are {len(headers)} headers.")
    return body


def _show(cell: object) -> str:
    return "" if cell is None else str(cell)


def _is_number(cell: object) -> bool:
    """Numbers, and numbers shortened by `human` or followed by a unit ('25.6M', '1.05e+10', '2.9x', '80%')."""
    if isinstance(cell, Number):
        return not isinstance(cell, bool)
    text = str(cell).rstrip("kMGTx%")
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numeric_columns(headers: Sequence[str], body: list[list[object]]) -> list[bool]:
    def numeric(column: int) -> bool:
        cells = [row[column] for row in body if row[column] is not None and row[column] != ""]
        return bool(cells) and all(map(_is_number, cells))

    return [numeric(i) for i in range(len(headers))]
