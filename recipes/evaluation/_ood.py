"""Telling inputs of another data set from those of the test set, by how uncertain the prediction is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from recipes.evaluation._errors import EvaluationError
from recipes.evaluation._inputs import log_probabilities_of

Uncertainty = Callable[[Tensor], Tensor]


def max_probability(log_probabilities: Tensor) -> Tensor:
    """Uncertainty by the largest probability: minus its log, `[N, K]` to `[N]` (Hendrycks and Gimpel 2017).

    Example:
        >>> max_probability(torch.tensor([[0.5, 0.5]]).log())
        tensor([0.6931])
    """
    return -log_probabilities.amax(dim=-1)


def entropy(log_probabilities: Tensor) -> Tensor:
    """Uncertainty by the entropy of the probabilities, in nats, `[N, K]` to `[N]`.

    Example:
        >>> entropy(torch.tensor([[0.5, 0.5]]).log())
        tensor([0.6931])
    """
    return torch.special.entr(log_probabilities.exp()).sum(dim=-1)


OOD_SCORES: Mapping[str, Uncertainty] = {"max_probability": max_probability, "entropy": entropy}


def ood_auroc(inside: Tensor, outside: Tensor, score: Uncertainty = max_probability) -> float:
    """Return the AUROC of telling foreign inputs from known ones by a score of uncertainty.

    Args:
        inside: Log-probabilities `[N, K]` on the test set.
        outside: Log-probabilities `[L, K]` on another data set: the positive class.
        score: `max_probability`, `entropy`, or any function from `[N, K]` to `[N]` that grows with uncertainty.

    Returns:
        The probability that a foreign input scores above a known one, ties half: .5 is chance, 1 is perfect.

    Raises:
        EvaluationError: Not log-probabilities, or different numbers of classes.

    Example:
        >>> certain, unsure = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.6, 0.4]]).log()
        >>> ood_auroc(certain, unsure)
        1.0
    """
    from torchmetrics.functional.classification import binary_auroc

    inside, outside = (log_probabilities_of(part, "ood_auroc").double() for part in (inside, outside))
    if inside.shape[-1] != outside.shape[-1]:
        raise EvaluationError(
            f"ood_auroc: both parts come from the same network, so they have the same classes; got "
            f"{list(inside.shape)} and {list(outside.shape)}."
        )
    scores = score(torch.cat([inside, outside]))
    foreign = torch.arange(len(scores), device=scores.device) >= len(inside)
    # torchmetrics puts scores outside of [0, 1] through a sigmoid, which merges large ones; ranks keep all apart.
    levels, ranks = scores.unique(return_inverse=True)
    return binary_auroc(ranks.double() / len(levels), foreign.long()).item()
