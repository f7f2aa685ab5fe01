"""The figures of a report, each returned as a piece of SVG that can stand inside an HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recipes._tables import mean_std
from recipes.evaluation import Looks, Plot, Series, looks, percent


def learning_curves(
    name: str, ylabel: str, curves: Mapping[str, Sequence[Series]], look: Looks, *, shares: bool = False
) -> str:
    """Draw one line per seed and one colour per system over training FLOPs.

    Args:
        name: Name of the drawing, for its ids.
        ylabel: What is drawn.
        curves: For each label the `(x, y)` of each seed.
        look: Look of each label.
        shares: Show `y` in percent, linearly; otherwise on a logarithmic axis.
    """

    def draw(canvas: Figure) -> None:
        axes = canvas.add_subplot()
        for label, seeds in curves.items():
            for number, (x, y) in enumerate(seeds):
                axes.plot(x, y, color=look[label].colour, alpha=0.75, linewidth=1.3, label=None if number else label)
        axes.set(xlabel="training FLOPs, relative to the single dense network", ylabel=ylabel)
        axes.set_xlim(left=0)
        if shares:
            percent(axes.yaxis)
        else:
            axes.set_yscale("log")
        axes.legend()

    return Plot(name, draw).svg()


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
        percent(axes.yaxis)
        axes.legend(fontsize=8)

    return Plot("tradeoff", draw, height=4.4).svg()


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
            percent(axes.xaxis)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))

    return Plot("diversity", draw, height=4.4).svg()


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
        axes.barh(range(len(names)), values, color="#d55e00", alpha=0.8)
        axes.axvline(overall, color="#333333", linestyle="--", linewidth=1, label=f"overall: {overall:.1%}")
        axes.set_yticks(range(len(names)), list(names), fontsize=8)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set(xlabel="density (share of the weights that is kept)", xlim=(0, 1))
        percent(axes.xaxis)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
        axes.grid(visible=False, axis="y")

    return Plot("density", draw, height=1.2 + 0.19 * len(layers)).svg()


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

    return Plot("topology", draw).svg()
