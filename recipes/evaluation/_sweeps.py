"""Diagrams over runs: the paper's Figures 3 (blocks in the head), 5 (training), 6 (ensemble size) and 7 (sparsity)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from recipes.evaluation._errors import EvaluationError
from recipes.evaluation._figure import Looks, Plot, percent, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What was varied, and what came out for every seed.
Sweep = Mapping[int, Sequence[float]] | Mapping[float, Sequence[float]]


def blocks_plot(accuracies: Mapping[str, Sweep], look: Looks) -> Plot:
    """Draw accuracy against the number of blocks in a head, a line per method of sparsification (Figure 3).

    Args:
        accuracies: For each label and number of blocks, the accuracy of every seed.
        look: Look of each label.

    Raises:
        EvaluationError: A point without a number.

    Example:
        >>> from recipes.evaluation import looks
        >>> blocks_plot({"RigL": {4: [0.8, 0.81], 8: [0.83]}}, looks(["RigL"])).name
        'blocks'
    """
    return _accuracy_plot("blocks", "blocks in a head", accuracies, look)


def sparsity_plot(accuracies: Mapping[str, Sweep], look: Looks) -> Plot:
    """Draw accuracy against sparsity (Figure 7).

    Args:
        accuracies: For each label and sparsity, 0 to 1, the accuracy of every seed.
        look: Look of each label.

    Raises:
        EvaluationError: A point without a number.

    Example:
        >>> from recipes.evaluation import looks
        >>> sparsity_plot({"NeuroTrails": {0.5: [0.8], 0.8: [0.83]}}, looks(["NeuroTrails"])).name
        'sparsity'
    """
    return _accuracy_plot("sparsity", "sparsity", accuracies, look)


def ensemble_size_plot(accuracies: Mapping[str, Sweep], flops: Mapping[str, Mapping[int, float]], look: Looks) -> Plot:
    """Draw accuracy and inference FLOPs against the number of heads, side by side (Figure 6).

    Args:
        accuracies: For each label and number of heads, the accuracy of every seed.
        flops: For each label and number of heads, inference FLOPs relative to the single dense network.
        look: Look of each label.

    Raises:
        EvaluationError: A point without a number.

    Example:
        >>> from recipes.evaluation import looks
        >>> sweep = {"NeuroTrails": {1: [0.8], 3: [0.83]}}
        >>> ensemble_size_plot(sweep, {"NeuroTrails": {1: 0.2, 3: 0.5}}, looks(["NeuroTrails"])).name
        'ensemble-size'
    """
    _check(accuracies)

    def draw(canvas: Figure) -> None:
        left, right = canvas.subplots(1, 2)
        _draw_accuracies(left, accuracies, look)
        for label, table in flops.items():
            colour, marker = look[label]
            sizes = sorted(table)
            right.plot(sizes, [table[size] for size in sizes], color=colour, marker=marker, markersize=4, label=label)
        left.set(xlabel="heads M", ylabel="test accuracy")
        right.set(xlabel="heads M", ylabel="inference FLOPs / single dense")
        right.set_ylim(bottom=0)
        # Measured sizes only: of a single one matplotlib makes an axis of fractions, whose whole numbers overlap.
        left.set_xticks(sorted({size for sweep in accuracies.values() for size in sweep}))
        right.set_xticks(sorted({size for table in flops.values() for size in table}))
        left.legend(fontsize=8)

    return Plot("ensemble-size", draw, width=8.6)


def training_plot(history: Sequence[Mapping[str, float]]) -> Plot:
    """Draw accuracy and prediction disagreement against the epoch (Figure 5).

    Args:
        history: A row per epoch, with `epoch`, `validation_accuracy` and `validation_disagreement`.

    Raises:
        EvaluationError: There are no rows, or a column is missing.

    Example:
        >>> row = {"epoch": 1, "validation_accuracy": 0.3, "validation_disagreement": 0.4}
        >>> training_plot([row, {**row, "epoch": 2}]).name
        'training'
    """
    columns = ("epoch", "validation_accuracy", "validation_disagreement")
    missing = sorted({column for row in history for column in columns if column not in row})
    if missing or not history:
        raise EvaluationError(
            f"training_plot: expected a row per epoch with {', '.join(columns)}; got {len(history)} rows"
            + (f" without {', '.join(missing)}." if missing else ".")
        )
    epochs, accuracies, disagreements = ([row[column] for row in history] for column in columns)

    def draw(canvas: Figure) -> None:
        left = canvas.add_subplot()
        right = left.twinx()
        right.spines["right"].set_visible(True)
        right.grid(visible=False)
        for axes, values, colour, title in (
            (left, accuracies, "#0072b2", "validation accuracy"),
            (right, disagreements, "#d55e00", "prediction disagreement"),
        ):
            axes.plot(epochs, values, color=colour, linewidth=1.4)
            axes.set_ylabel(title, color=colour)
            axes.tick_params(axis="y", labelcolor=colour)
            axes.set_ylim(bottom=0)
            percent(axes.yaxis)
        left.set(xlabel="epoch")
        whole(left.xaxis)

    return Plot("training", draw)


def _accuracy_plot(name: str, xlabel: str, accuracies: Mapping[str, Sweep], look: Looks) -> Plot:
    _check(accuracies)

    def draw(canvas: Figure) -> None:
        axes = canvas.add_subplot()
        _draw_accuracies(axes, accuracies, look)
        axes.set(xlabel=xlabel, ylabel="test accuracy")
        axes.legend(fontsize=8)

    return Plot(name, draw)


def _check(accuracies: Mapping[str, Sweep]) -> None:
    for label, sweep in accuracies.items():
        for x, values in sweep.items():
            if len(values) == 0:
                raise EvaluationError(f"{label!r} has no run at {x:g}; leave the point out, or finish a run for it.")


def _draw_accuracies(axes: Any, accuracies: Mapping[str, Sweep], look: Looks) -> None:
    """A line through the means, with the standard deviation over seeds as bars."""
    for label, sweep in accuracies.items():
        colour, marker = look[label]
        points = sorted(sweep.items())
        spread = [stdev(values) if len(values) > 1 else 0.0 for _, values in points]
        axes.errorbar(
            [x for x, _ in points],
            [fmean(values) for _, values in points],
            yerr=spread if any(spread) else None,
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.2,
            capsize=3,
            label=label,
        )
    axes.margins(y=0.15)
    percent(axes.yaxis)
