"""Diagrams of predictions: reliability, risk against coverage, accuracy under corruption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from recipes.evaluation._figure import Looks, Plot, percent
from recipes.evaluation._selective import risk_coverage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST = 10  # predictions in a bin of the reliability diagram

_DRAWN = 500  # points of a curve that has one for every input


def reliability_diagram(bins: Mapping[str, Sequence[tuple[float, float, int]]], look: Looks) -> Plot:
    """Draw accuracy against confidence per system, and below the share of the predictions in each bin.

    The accuracy of bins with few predictions would be noise, and is left out.

    Args:
        bins: For each label mean confidence, accuracy and count of each bin, see `calibration_bins`.
        look: Look of each label.

    Example:
        >>> from recipes.evaluation import looks
        >>> reliability_diagram({"net": [(0.5, 0.4, 30), (0.9, 1.0, 90)]}, looks(["net"])).name
        'reliability'
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

    return Plot("reliability", draw, height=4.4)


def risk_coverage_plot(predictions: Mapping[str, tuple[Tensor, Tensor]], look: Looks) -> Plot:
    """Draw the error among answered inputs against the share that is answered, most confident first.

    Args:
        predictions: For each label log-probabilities `[N, K]` and labels `[N]`.
        look: Look of each label.

    Raises:
        EvaluationError: Log-probabilities and labels don't fit each other.

    Example:
        >>> from recipes.evaluation import looks
        >>> predictions = {"net": (torch.tensor([[0.4, 0.6], [0.9, 0.1]]).log(), torch.tensor([0, 0]))}
        >>> risk_coverage_plot(predictions, looks(["net"])).name
        'risk-coverage'
    """
    curves = {label: risk_coverage(*given) for label, given in predictions.items()}

    def draw(canvas: Figure) -> None:
        axes = canvas.add_subplot()
        for label, (coverage, risk) in curves.items():
            every = -(-len(risk) // _DRAWN)
            # Backwards from full coverage, which has to be there.
            xs, ys = (values.cpu().flip(0)[::every].numpy() for values in (coverage, risk))
            axes.plot(xs, ys, color=look[label].colour, linewidth=1.4, label=f"{label}, AURC {risk.mean().item():.4f}")
        axes.set(xlabel="coverage: share of inputs answered", ylabel="error among them", xlim=(0, 1))
        axes.set_ylim(bottom=0)
        percent(axes.xaxis)
        percent(axes.yaxis)
        axes.legend(fontsize=8)

    return Plot("risk-coverage", draw)


def corruption_plot(accuracies: Mapping[str, Mapping[int, float]], look: Looks, clean: float | None = None) -> Plot:
    """Draw accuracy against the severity of corruptions.

    Args:
        accuracies: For each label (a corruption, or a system averaged over corruptions) the accuracy at each severity.
        look: Look of each label.
        clean: Accuracy without corruption, as a line.

    Example:
        >>> from recipes.evaluation import looks
        >>> corruption_plot({"fog": {1: 0.8, 3: 0.6}}, looks(["fog"]), clean=0.9).name
        'corruption'
    """

    def draw(canvas: Figure) -> None:
        axes = canvas.add_subplot()
        if clean is not None:
            axes.axhline(clean, color="#bbbbbb", linestyle="--", linewidth=1, label="clean")
        for label, table in accuracies.items():
            colour, marker = look[label]
            severities = sorted(table)
            values = [table[severity] for severity in severities]
            axes.plot(severities, values, color=colour, marker=marker, markersize=4, linewidth=1.2, label=label)
        axes.set(xlabel="severity of the corruption", ylabel="accuracy")
        axes.set_xticks(sorted({severity for table in accuracies.values() for severity in table}))
        axes.set_ylim(bottom=0)
        percent(axes.yaxis)
        axes.legend(fontsize=8, ncols=2 if len(accuracies) > 6 else 1)

    return Plot("corruption", draw)
