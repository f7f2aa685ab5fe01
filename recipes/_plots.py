"""The figures of a report, each returned as a piece of SVG that can stand inside an HTML page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from recipes._tables import mean_std

# Okabe and Ito's colours, told apart with any colour vision; the first system, the reference, is grey.
_COLOURS = ("#6b6b6b", "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#e69f00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

FEWEST = 10  # predictions in a bin of the reliability diagram

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

Series = tuple[Sequence[float], Sequence[float]]


class Look(NamedTuple):
    """Colour and marker of one system, the same in every figure."""

    colour: str
    marker: str


Looks = Mapping[str, Look]


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """Give each label a look, in order."""
    return {
        label: Look(_COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)])
        for number, label in enumerate(labels)
    }


def figure(draw: Callable[[Figure], None], name: str, width: float = 5.2, height: float = 3.6) -> str:
    """Let `draw` fill a figure and return it as `<svg ...>`, without prologue, metadata or external reference.

    Args:
        draw: Fills the figure.
        name: Makes the ids within the drawing unlike those of other drawings on the page.
        width: In inches.
        height: In inches.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        canvas = Figure(figsize=(width, height), layout="constrained")
        draw(canvas)
        page = io.StringIO()
        canvas.savefig(page, format="svg", metadata={"Date": None})
    drawing = page.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    # Several drawings on one page: glyph and clip ids must not meet.
    drawing = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', drawing)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", drawing)


def learning_curves(
    name: str, ylabel: str, curves: Mapping[str, Sequence[Series]], look: Looks, *, percent: bool = False
) -> str:
    """Draw one line per seed and one colour per system over training FLOPs.

    Args:
        name: Name of the drawing, for its ids.
        ylabel: What is drawn.
        curves: For each label the `(x, y)` of each seed.
        look: Look of each label.
        percent: Show `y` in percent, linearly; otherwise on a logarithmic axis.
    """

    def draw(canvas: Figure) -> None:
        axes = canvas.add_subplot()
        for label, seeds in curves.items():
            for number, (x, y) in enumerate(seeds):
                axes.plot(x, y, color=look[label].colour, alpha=0.75, linewidth=1.3, label=None if number else label)
        axes.set(xlabel="training FLOPs, relative to the single dense network", ylabel=ylabel)
        axes.set_xlim(left=0)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        else:
            axes.set_yscale("log")
        axes.legend()

    return figure(draw, name)


def reliability(bins: Mapping[str, Sequence[tuple[float, float, int]]], look: Looks) -> str:
    """Draw accuracy against confidence per system, and below the share of the predictions in each bin.

    The accuracy of bins with few predictions would be noise, and is left out.

    Args:
        bins: For each label mean confidence, accuracy and count of each bin, see `calibration_bins`.
        look: Look of each label.
    """

    def draw(canvas: Figure) -> None:
        upper, lower = canvas.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot((0, 1), (0, 1), color="#bbbbbb", linestyle="--", linewidth=1, label="calibrated")
        for label, table in bins.items():
            colour, marker = look[label]
            full = [(confidence, accuracy) for confidence, accuracy, count in table if count >= FEWEST]
            xs, ys = [x for x, _ in full], [y for _, y in full]
            upper.plot(xs, ys, color=colour, marker=marker, markersize=4, linewidth=1.2, label=label)
            total = sum(count for _, _, count in table)
            shares = [count / total for _, _, count in table]
            lower.plot([x for x, _, _ in table], shares, color=colour, marker=marker, markersize=3)
        upper.set(ylabel="accuracy", ylim=(0, 1.03))
        upper.legend(fontsize=8)
        lower.set(xlabel="confidence of the vote", ylabel="share", yscale="log", xlim=(0, 1.02))

    return figure(draw, "reliability", height=4.4)


def trade_off(points: Mapping[str, tuple[float, Sequence[float]]], look: Looks) -> str:
    """Draw test accuracy against inference FLOPs: a dot per seed, a bar for mean and standard deviation."""

    def draw(canvas: Figure) -> None:
        axes = canvas.add_subplot()
        for label, (flops, accuracies) in points.items():
            colour, marker = look[label]
            mean, std = mean_std(accuracies)
            axes.errorbar(
                [flops], [mean], yerr=[std], color=colour, marker=marker, capsize=5, linestyle="", label=label
            )
            axes.plot([flops] * len(accuracies), accuracies, color=colour, marker=".", alpha=0.45, linestyle="")
        axes.set(xlabel="inference FLOPs per image, actual masks (millions)", ylabel="test accuracy")
        axes.set_xlim(left=0)
        axes.margins(y=0.15)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(fontsize=8)

    return figure(draw, "tradeoff", height=4.4)


def diversity(points: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]], look: Looks) -> str:
    """Draw, per system, disagreement of its heads and what voting adds to the mean head's accuracy.

    Args:
        points: For each label and per seed: disagreement, mean accuracy of a head, accuracy of the vote.
        look: Look of each label.
    """

    def draw(canvas: Figure) -> None:
        upper, lower = canvas.subplots(2, 1)
        for row, (label, (disagreements, heads, votes)) in enumerate(points.items()):
            colour = look[label].colour
            gains = [vote - head for vote, head in zip(votes, heads, strict=True)]
            _dots(upper, row, disagreements, colour)
            _dots(lower, row, gains, colour)
        for axes, title in (
            (upper, "pairs of heads that disagree"),
            (lower, "accuracy of the vote minus that of a head"),
        ):
            axes.set_yticks(range(len(points)), list(points), fontsize=9)
            axes.set_ylim(len(points) - 0.5, -0.5)
            axes.set_xlabel(title)
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))

    return figure(draw, "diversity", height=4.4)


def _dots(axes: Axes, row: int, values: Sequence[float], colour: str) -> None:
    mean, std = mean_std(values)
    axes.barh(row, mean, color=colour, alpha=0.35, height=0.6)
    axes.errorbar([mean], [row], xerr=[std], color=colour, capsize=4)
    axes.plot(values, [row] * len(values), color=colour, marker=".", linestyle="")


def layer_densities(layers: Sequence[tuple[str, float]], overall: float) -> str:
    """Draw the density of each masked weight, in network order, and the overall density as a line."""

    def draw(canvas: Figure) -> None:
        axes = canvas.add_subplot()
        names, values = zip(*layers, strict=True)
        axes.barh(range(len(names)), values, color=_COLOURS[3], alpha=0.8)
        axes.axvline(overall, color="#333333", linestyle="--", linewidth=1, label=f"overall: {overall:.1%}")
        axes.set_yticks(range(len(names)), list(names), fontsize=8)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set(xlabel="density (share of the weights that is kept)", xlim=(0, 1))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
        axes.grid(visible=False, axis="y")

    return figure(draw, "density", height=1.2 + 0.19 * len(layers))


def topology_updates(updates: Mapping[str, Series]) -> str:
    """Draw how many weights each topology update dropped (and grew: the same number), per component."""
    look = looks(updates)

    def draw(canvas: Figure) -> None:
        axes = canvas.add_subplot()
        for component, (steps, counts) in updates.items():
            colour, marker = look[component]
            axes.plot(steps, counts, color=colour, marker=marker, markersize=3.5, linewidth=1, label=component)
        axes.set(xlabel="training step", ylabel="weights dropped, and as many grown")
        axes.set_ylim(bottom=0)
        axes.legend()

    return figure(draw, "topology")
