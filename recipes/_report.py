"""A results page as one self-contained HTML file: no script, no style sheet, no image outside it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #1c1c1c; background: #fff;
       max-width: 1180px; margin: 2.2rem auto 4rem; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p { margin: .4rem 0; } .lead { color: #555; } .note { color: #555; font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .35rem .55rem; border-bottom: 1px solid #e2e2e2; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #999; font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; } td.text { text-align: left; white-space: normal; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 1.4rem 2rem; }
figure { margin: 0; } figure svg, figure img { width: 100%; height: auto; }
figcaption { color: #444; font-size: .88rem; }
.pass { color: #00703c; font-weight: 600; } .fail { color: #b00020; font-weight: 600; }
@media (max-width: 520px) { .figures { grid-template-columns: 1fr; } }
@media print { body { max-width: none; margin: 0; } figure, table { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Section:
    """A heading and the HTML under it."""

    title: str
    body: str


def page(title: str, lead: str, sections: Iterable[Section]) -> str:
    """Put a page together.

    Args:
        title: Heading of the page, as text.
        lead: What the page is about, as text.
        sections: In order.
    """
    body = "\n".join(f"<section><h2>{escape(part.title)}</h2>\n{part.body}</section>" for part in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f'<body><h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n{body}\n</body></html>\n'
    )


def paragraphs(lines: Iterable[str], kind: str = "") -> str:
    """Render each line of text as a paragraph."""
    opening = f'<p class="{kind}">' if kind else "<p>"
    return "\n".join(f"{opening}{escape(line)}</p>" for line in lines)


def bullets(lines: Iterable[str]) -> str:
    """Render lines of text as a list."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def data_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Render a table of numbers: the first column left, the others right."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in headers)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Render names and what they stand for, as a table of text."""
    body = "".join(f'<tr><td>{escape(name)}</td><td class="text">{escape(value)}</td></tr>' for name, value in pairs)
    return f"<table><tbody>{body}</tbody></table>"


def figures(drawings: Iterable[tuple[str, str]]) -> str:
    """Lay drawings out in a grid: SVG or what `picture` made, each with its caption in text."""
    inner = "".join(f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" for svg, caption in drawings)
    return f'<div class="figures">{inner}</div>'


def picture(png: bytes, description: str) -> str:
    """Render a PNG file inside the page, with a description for those who can't see it."""
    data = base64.b64encode(png).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{escape(description)}">'


def checks(results: Iterable[tuple[str, bool, str]]) -> str:
    """Render checks: what was checked, whether it passed, and the measured number."""
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="{"pass" if passed else "fail"}">{"pass" if passed else "FAIL"}</td>'
        f'<td class="text">{escape(detail)}</td></tr>'
        for name, passed, detail in results
    )
    return f"<table><tbody>{rows}</tbody></table>"
