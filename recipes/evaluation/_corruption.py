"""Robustness: accuracy on corrupted inputs by kind and severity, as in CIFAR-C and ImageNet-C."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from recipes.evaluation._errors import EvaluationError
from recipes.evaluation._inputs import head_logits_of
from recipes.evaluation._quality import accuracy
from recipes.evaluation._votes import Vote, mean_probability

Severities = Mapping[int, float]


def corruption_accuracy(
    logits: Mapping[str, Mapping[int, Tensor]], labels: Tensor, vote: Vote = mean_probability
) -> dict[str, dict[int, float]]:
    """Return the accuracy of the vote for every corruption and severity.

    Args:
        logits: For each corruption and severity (1 to 5), `[M, N, K]` on the corrupted test set.
        labels: `[N]`, the same for all.
        vote: How heads vote.

    Raises:
        EvaluationError: Logits and labels don't fit each other.

    Example:
        >>> right = torch.tensor([[[4.0, 0.0]]])
        >>> corruption_accuracy({"fog": {1: right, 2: -right}}, torch.tensor([0]))
        {'fog': {1: 1.0, 2: 0.0}}
    """
    return {
        name: {
            severity: accuracy(vote(head_logits_of(values, f"corruption {name!r} {severity}")), labels)
            for severity, values in sorted(severities.items())
        }
        for name, severities in logits.items()
    }


def mean_by_severity(accuracies: Mapping[str, Severities]) -> dict[int, float]:
    """Average over corruptions, severity by severity.

    Raises:
        EvaluationError: There are none, or they have different severities.

    Example:
        >>> mean_by_severity({"fog": {1: 0.8, 2: 0.6}, "blur": {1: 0.6, 2: 0.2}})
        {1: 0.7, 2: 0.4}
    """
    tables = list(accuracies.values())
    if not tables or any(set(table) != set(tables[0]) for table in tables):
        found = {name: sorted(table) for name, table in accuracies.items()}
        raise EvaluationError(f"mean_by_severity: expected corruptions at the same severities, got {found}.")
    return {severity: sum(table[severity] for table in tables) / len(tables) for severity in sorted(tables[0])}
