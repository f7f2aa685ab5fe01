"""What is measured on a test set, from the logits of every head: accuracy, NLL, ECE and prediction disagreement."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

ECE_BINS = 15


def mean_probability(logits: Tensor) -> Tensor:
    """Average the heads' probabilities: `log mean_m softmax(logits_m)`, `[M, N, K]` to `[N, K]`.

    Soft voting of NeuroTrails, Algorithm 1 (arXiv 2505.17909).

    Example:
        >>> mean_probability(torch.zeros(3, 1, 2)).exp()
        tensor([[0.5000, 0.5000]])
    """
    return torch.logsumexp(functional.log_softmax(logits, dim=-1), dim=0) - math.log(len(logits))


def mean_logit(logits: Tensor) -> Tensor:
    """Average the heads' logits and normalise: `log softmax(mean_m logits_m)`, `[M, N, K]` to `[N, K]`.

    Soft voting as section 3 of NeuroTrails writes it.

    Example:
        >>> mean_logit(torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]])).exp()
        tensor([[0.5000, 0.5000]])
    """
    return functional.log_softmax(logits.mean(dim=0), dim=-1)


AGGREGATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"prob": mean_probability, "logit": mean_logit}


def disagreement(logits: Tensor) -> float:
    """Return the share of inputs on which two heads predict different classes, averaged over the pairs of heads.

    Args:
        logits: `[M, N, K]`.

    Returns:
        A number from 0 to 1; NaN for a single head, which has no pair.

    Example:
        >>> disagreement(torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]))
        0.5
    """
    predictions = logits.argmax(dim=-1)
    pairs = list(itertools.combinations(predictions, 2))
    if not pairs:
        return math.nan
    return sum((one != other).double().mean().item() for one, other in pairs) / len(pairs)


def probabilities_of(log_probabilities: Tensor) -> Tensor:
    """Turn log-probabilities into probabilities that lie below 1, as torchmetrics' binning needs them."""
    # Rounding can lift exp() above 1, which torchmetrics would take for logits, and it counts a confidence of
    # exactly 1 in a sixteenth bin.
    return log_probabilities.exp().clamp(max=1 - 2**-24)


def calibration_bins(log_probabilities: Tensor, labels: Tensor, bins: int = ECE_BINS) -> list[tuple[float, float, int]]:
    """Return mean confidence, accuracy and count of each non-empty bin, lowest confidence first.

    Args:
        log_probabilities: `[N, K]`.
        labels: `[N]`.
        bins: Number of bins of equal width between 0 and 1; a bin holds its lower edge.

    Example:
        >>> calibration_bins(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([1]))
        [(0.75, 1.0, 1)]
    """
    confidence, prediction = probabilities_of(log_probabilities).max(dim=-1)
    inner_edges = torch.linspace(0, 1, bins + 1)[1:-1]
    index = torch.bucketize(confidence, inner_edges, right=True)
    right = (prediction == labels).double()
    in_bin = [index == number for number in range(bins)]
    return [
        (confidence[inside].double().mean().item(), right[inside].mean().item(), int(inside.sum()))
        for inside in in_bin
        if inside.any()
    ]


def evaluate(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Measure an ensemble from the logits of its heads.

    Args:
        logits: `[M, N, K]`, computed in evaluation mode.
        labels: `[N]`.

    Returns:
        `accuracy_*`, `nll_*` (nats) and `ece_*` (15 bins of equal width, L1, top-1) for both aggregations `prob` and
        `logit`, `disagreement`, and `head_accuracy`, the mean accuracy of a head by itself.

    Example:
        >>> logits = torch.tensor([[[4.0, 0.0], [0.0, 4.0]]])
        >>> evaluate(logits, torch.tensor([0, 1]))["accuracy_prob"]
        1.0
    """
    classes = logits.shape[-1]
    measured = {}
    for name, aggregate in AGGREGATIONS.items():
        log_probabilities = aggregate(logits)
        probabilities = probabilities_of(log_probabilities)
        measured[f"accuracy_{name}"] = multiclass_accuracy(probabilities, labels, classes, average="micro").item()
        measured[f"nll_{name}"] = functional.nll_loss(log_probabilities, labels).item()
        measured[f"ece_{name}"] = multiclass_calibration_error(
            probabilities, labels, classes, n_bins=ECE_BINS, norm="l1"
        ).item()
    measured["disagreement"] = disagreement(logits)
    measured["head_accuracy"] = (logits.argmax(dim=-1) == labels).double().mean().item()
    return measured
