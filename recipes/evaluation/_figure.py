"""Figures: drawn by a function, rendered as SVG for a page or as PNG for a file. matplotlib is imported when one is."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision; the first system, the reference, is grey.
_COLOURS = ("#6b6b6b", "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


class Look(NamedTuple):
    """Colour and marker of one system, the same in every figure."""

    colour: str
    marker: str


Looks = Mapping[str, Look]
Series = tuple[Sequence[float], Sequence[float]]


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """Give each label a look, in order.

    Example:
        >>> looks(["Single dense"])["Single dense"].marker
        'o'
    """
    return {
        label: Look(_COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)])
        for number, label in enumerate(labels)
    }


@dataclass(frozen=True)
class Plot:
    """A figure that is yet to be drawn.

    Args:
        name: Name of its file, and of its ids within a page.
        draw: Fills a matplotlib figure.
        width: In inches.
        height: In inches.

    Example:
        >>> plot = Plot("line", lambda canvas: canvas.add_subplot().plot([0, 1]))
        >>> plot.svg()[:4], plot.png()[1:4]
        ('<svg', b'PNG')
    """

    name: str
    draw: Callable[[Figure], object]
    width: float = 5.2
    height: float = 3.6

    def svg(self) -> str:
        """Render as `<svg ...>`, without prologue, metadata or external reference, to stand inside a page."""
        drawing = self._render("svg", metadata={"Date": None}).decode()
        drawing = drawing[drawing.index("<svg") :]
        drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
        # Several drawings on one page: glyph and clip ids must not meet.
        drawing = re.sub(r'\bid="([^"]+)"', rf'id="{self.name}-\1"', drawing)
        return re.sub(r'(url\(#|href="#)', rf"\g<1>{self.name}-", drawing)

    def png(self, dpi: int = 150) -> bytes:
        """Render as a PNG file."""
        return self._render("png", dpi=dpi)

    def save(self, folder: Path, dpi: int = 150) -> Path:
        """Write `<name>.png` into a folder, and return its path."""
        file = folder / f"{self.name}.png"
        file.write_bytes(self.png(dpi))
        return file

    def _render(self, kind: str, **options: Any) -> bytes:
        import matplotlib as mpl
        from matplotlib.figure import Figure

        with mpl.rc_context({**_STYLE, "svg.hashsalt": self.name}):
            canvas = Figure(figsize=(self.width, self.height), layout="constrained")
            self.draw(canvas)
            page = io.BytesIO()
            canvas.savefig(page, format=kind, **options)
        return page.getvalue()


def percent(axis: Any) -> None:
    """Label an axis of shares in percent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0))


def whole(axis: Any) -> None:
    """Put ticks of an axis of counts on whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))
