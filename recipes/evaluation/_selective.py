"""Selective prediction: what the error is if the least certain inputs are left unanswered."""

from __future__ import annotations

import torch
from torch import Tensor

from recipes.evaluation._inputs import check_labels, log_probabilities_of


def risk_coverage(log_probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the error among the most confident inputs, for every number of inputs that are answered.

    Inputs of equal confidence can't be told apart, so each counts with their mean error, in whatever order they come.

    Args:
        log_probabilities: `[N, K]`; the largest of an input is its confidence.
        labels: `[N]`.

    Returns:
        Coverage `[N]`, from 1/N to 1, and risk `[N]`, the error rate at that coverage.

    Raises:
        EvaluationError: The inputs don't fit each other, or aren't log-probabilities.

    Example:
        >>> log_probabilities = torch.tensor([[0.4, 0.6], [0.9, 0.1]]).log()
        >>> risk_coverage(log_probabilities, torch.tensor([0, 0]))[1].tolist()
        [0.0, 0.5]
    """
    log_probabilities = log_probabilities_of(log_probabilities, "risk_coverage")
    check_labels(log_probabilities, labels, "risk_coverage")
    confidence, prediction = log_probabilities.max(dim=-1)
    confidence, order = confidence.sort(descending=True)
    wrong = (prediction != labels).double()[order]
    _, group, sizes = confidence.unique_consecutive(return_inverse=True, return_counts=True)
    errors = torch.zeros(len(sizes), dtype=wrong.dtype, device=wrong.device).index_add(0, group, wrong)
    answered = torch.arange(1, len(wrong) + 1, dtype=wrong.dtype, device=wrong.device)
    return answered / len(wrong), (errors / sizes)[group].cumsum(0) / answered


def aurc(log_probabilities: Tensor, labels: Tensor) -> float:
    """Return the area under the risk-coverage curve: the mean risk over all N coverages (Geifman et al. 2019).

    Args:
        log_probabilities: `[N, K]`.
        labels: `[N]`.

    Returns:
        From 0 to 1; 0 if every answer is right. See `risk_coverage` for equal confidences.

    Raises:
        EvaluationError: The inputs don't fit each other, or aren't log-probabilities.

    Example:
        >>> aurc(torch.tensor([[0.4, 0.6], [0.9, 0.1]]).log(), torch.tensor([0, 0]))
        0.25
    """
    return risk_coverage(log_probabilities, labels)[1].mean().item()
