"""A few SVG elements as strings: enough for a diagram of boxes and arrows, readable on light and dark pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

# Text is fitted by counting characters, which only a monospaced font makes exact enough.
_FONT = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"
_ASPECT = 0.605


Point = tuple[float, float]


@dataclass
class Canvas:
    """Collects elements; `render` wraps them into one document with a white background."""

    width: float
    elements: list[str] = field(default_factory=list)

    def rect(self, x: float, y: float, width: float, height: float, fill: str, stroke: str = "none") -> None:
        """A rectangle with slightly rounded corners, in pixels."""
        place = f'x="{x:g}" y="{y:g}" width="{width:.6g}" height="{height:g}"'
        self.elements.append(f'<rect {place} rx="3" fill="{fill}" stroke="{stroke}"/>')

    def text(
        self, x: float, y: float, content: str, size: float = 11, room: float = 1e9, color: str = "#111",
        anchor: str = "start", bold: bool = False,
    ) -> None:  # fmt: skip
        """One line of text, its baseline at ``y``, shortened to ``room`` pixels."""
        weight = ' font-weight="bold"' if bold else ""
        self.elements.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{color}" text-anchor="{anchor}"{weight}>'
            f"{escape(shorten(content, int(room / (size * _ASPECT))))}</text>"
        )

    def arrow(
        self, start: tuple[float, float], end: tuple[float, float], color: str = "#555", wide: bool = False
    ) -> None:
        """A line with an arrow head; it leaves and arrives vertically."""
        (x0, y0), (x1, y1) = start, end
        middle = (y0 + y1) / 2
        line = f"M{x0:g} {y0:g}C{x0:g} {middle:g} {x1:g} {middle:g} {x1:g} {y1 - 5:g}"
        stroke = f'stroke="{color}" stroke-width="{2.5 if wide else 1.3}"'
        self.elements.append(f'<path d="{line}" fill="none" {stroke}/>')
        self.elements.append(f'<path d="M{x1 - 4:g} {y1 - 6:g}h8l-4 6z" fill="{color}"/>')

    def open(self, tooltip: str) -> None:
        """Start a group whose elements share a tooltip."""
        self.elements.append(f"<g><title>{escape(tooltip)}</title>")

    def close(self) -> None:
        """End the group."""
        self.elements.append("</g>")

    def render(self, height: float) -> str:
        """The document, ``height`` pixels tall; a page narrower than it scales it down."""
        size = f'width="{self.width:g}" height="{height:g}" viewBox="0 0 {self.width:g} {height:g}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{_FONT}" style="max-width:100%;height:auto">'
            f'<rect width="100%" height="100%" fill="#fff"/>{"".join(self.elements)}</svg>'
        )


def shorten(text: str, room: int) -> str:
    """Keep the end of a long text, which is where dotted paths differ.

    Example:
        >>> shorten("encoder.layers.11.attention", 12)
        '…1.attention'
    """
    return text if len(text) <= room else "…" + text[len(text) - max(room - 1, 0) :]


def text_width(text: str, size: float) -> float:
    """Width of a line of text in pixels, about."""
    return len(text) * size * _ASPECT
