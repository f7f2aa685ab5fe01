"""Calibration: does a prediction of confidence p come true in a share p of the cases?"""

from __future__ import annotations

import torch
from torch import Tensor

from recipes.evaluation._inputs import check_labels, log_probabilities_of

ECE_BINS = 15


def probabilities_of(log_probabilities: Tensor) -> Tensor:
    """Turn log-probabilities into probabilities that lie below 1, as torchmetrics' binning needs them."""
    # Rounding can lift exp() above 1, which torchmetrics would take for logits, and it counts a confidence of
    # exactly 1 in a sixteenth bin.
    return log_probabilities.exp().clamp(max=1 - 2**-24)


def calibration_error(log_probabilities: Tensor, labels: Tensor, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error of the top-1 prediction: bins of equal width, L1 (Guo et al. 2017).

    Args:
        log_probabilities: `[N, K]`.
        labels: `[N]`.
        bins: Number of bins between 0 and 1.

    Raises:
        EvaluationError: The inputs don't fit each other, or aren't log-probabilities.

    Example:
        >>> round(calibration_error(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([1])), 4)
        0.25
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    log_probabilities = log_probabilities_of(log_probabilities, "calibration_error")
    check_labels(log_probabilities, labels, "calibration_error")
    probabilities, classes = probabilities_of(log_probabilities), log_probabilities.shape[-1]
    return multiclass_calibration_error(probabilities, labels, classes, n_bins=bins, norm="l1").item()


def calibration_bins(log_probabilities: Tensor, labels: Tensor, bins: int = ECE_BINS) -> list[tuple[float, float, int]]:
    """Return mean confidence, accuracy and count of each non-empty bin, lowest confidence first.

    Args:
        log_probabilities: `[N, K]`.
        labels: `[N]`.
        bins: Number of bins of equal width between 0 and 1; a bin holds its lower edge.

    Raises:
        EvaluationError: The inputs don't fit each other, or aren't log-probabilities.

    Example:
        >>> calibration_bins(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([1]))
        [(0.75, 1.0, 1)]
    """
    log_probabilities = log_probabilities_of(log_probabilities, "calibration_bins")
    check_labels(log_probabilities, labels, "calibration_bins")
    confidence, prediction = probabilities_of(log_probabilities).max(dim=-1)
    inner_edges = torch.linspace(0, 1, bins + 1, device=confidence.device)[1:-1]
    index = torch.bucketize(confidence, inner_edges, right=True)
    right = (prediction == labels).double()
    in_bin = [index == number for number in range(bins)]
    return [
        (confidence[inside].double().mean().item(), right[inside].mean().item(), int(inside.sum()))
        for inside in in_bin
        if inside.any()
    ]
