"""How much heads differ: disagreement, KL divergence, Q-statistic and double fault, over pairs of heads.

Kuncheva and Whitaker (2003) compare such measures. All take the logits of the heads and need at least two.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from recipes.evaluation._inputs import check_labels, head_logits_of


def disagreement(logits: Tensor) -> float:
    """Return the share of inputs on which two heads predict different classes, averaged over the pairs of heads.

    Args:
        logits: `[M, N, K]`, M at least 2.

    Returns:
        A number from 0 to 1.

    Raises:
        EvaluationError: A single head, or no logits.

    Example:
        >>> disagreement(torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]))
        0.5
    """
    predictions = head_logits_of(logits, "disagreement", fewest=2).argmax(dim=-1)
    pairs = list(itertools.combinations(predictions, 2))
    return sum((one != other).double().mean().item() for one, other in pairs) / len(pairs)


def any_conflict(logits: Tensor) -> float:
    """Return the share of inputs on which the heads don't all predict the same class (Skalak 1996).

    Args:
        logits: `[M, N, K]`, M at least 2.

    Raises:
        EvaluationError: A single head, or no logits.

    Example:
        >>> any_conflict(torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]]))
        1.0
    """
    predictions = head_logits_of(logits, "any_conflict", fewest=2).argmax(dim=-1)
    return (predictions != predictions[0]).any(dim=0).double().mean().item()


def released_disagreement(logits: Tensor) -> float:
    """Return what the authors' released code calls disagreement: the mean of the M x M matrix with its zero diagonal.

    It is `disagreement` times (M - 1) / M, so two thirds of it at M = 3.

    Args:
        logits: `[M, N, K]`, M at least 2.

    Raises:
        EvaluationError: A single head, or no logits.

    Example:
        >>> released_disagreement(torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]))
        0.25
    """
    return disagreement(logits) * (len(logits) - 1) / len(logits)


def pairwise_kl(logits: Tensor) -> float:
    """Return KL(p_i || p_j) in nats, averaged over inputs and over ordered pairs of different heads.

    Args:
        logits: `[M, N, K]`, M at least 2.

    Returns:
        0 if all heads give the same probabilities; infinite if one rules out what another one holds possible.

    Raises:
        EvaluationError: A single head, or no logits.

    Example:
        >>> round(pairwise_kl(torch.tensor([[[0.8, 0.2]], [[0.2, 0.8]]]).log()), 4)
        0.8318
    """
    heads = functional.log_softmax(head_logits_of(logits, "pairwise_kl", fewest=2).double(), dim=-1)
    pairs = list(itertools.permutations(heads, 2))
    return sum(_kl(one, other) for one, other in pairs) / len(pairs)


def _kl(one: Tensor, other: Tensor) -> float:
    # A class of probability 0 adds nothing, whatever the other head says of it.
    terms = torch.where(one == -math.inf, 0.0, one.exp() * (one - other))
    return terms.sum(dim=-1).mean().item()


def q_statistic(logits: Tensor, labels: Tensor) -> float:
    """Return Yule's Q of being right, averaged over pairs of heads: (ab - cd) / (ab + cd).

    For two heads, a counts the inputs where both are right, b where both are wrong, c and d where one of them is.

    Args:
        logits: `[M, N, K]`, M at least 2.
        labels: `[N]`.

    Returns:
        From -1 (they fail on different inputs) over 0 (independent) to 1 (on the same ones). Pairs for which it is 0/0
        are left out; NaN if there is no other.

    Raises:
        EvaluationError: A single head, or labels that don't fit.

    Example:
        >>> right, wrong = [1.0, 0.0], [0.0, 1.0]
        >>> logits = torch.tensor([[right, wrong, right, right], [right, wrong, wrong, right]])
        >>> q_statistic(logits, torch.tensor([0, 0, 0, 0]))
        1.0
    """
    values = []
    for one, other in itertools.combinations(_right(logits, labels, "q_statistic"), 2):
        same = int((one & other).sum()) * int((~one & ~other).sum())
        different = int((one & ~other).sum()) * int((~one & other).sum())
        if same + different:
            values.append((same - different) / (same + different))
    return sum(values) / len(values) if values else math.nan


def double_fault(logits: Tensor, labels: Tensor) -> float:
    """Return the share of inputs on which two heads are both wrong, averaged over pairs (Giacinto and Roli 2001).

    Args:
        logits: `[M, N, K]`, M at least 2.
        labels: `[N]`.

    Raises:
        EvaluationError: A single head, or labels that don't fit.

    Example:
        >>> double_fault(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([1, 1]))
        0.5
    """
    pairs = list(itertools.combinations(_right(logits, labels, "double_fault"), 2))
    return sum((~one & ~other).double().mean().item() for one, other in pairs) / len(pairs)


def _right(logits: Tensor, labels: Tensor, metric: str) -> Tensor:
    """Which inputs each head gets right, `[M, N]`."""
    logits = head_logits_of(logits, metric, fewest=2)
    check_labels(logits, labels, metric)
    return logits.argmax(dim=-1) == labels


DIVERSITY: Mapping[str, Callable[[Tensor, Tensor], float]] = {
    "disagreement": lambda logits, labels: disagreement(logits),
    "any_conflict": lambda logits, labels: any_conflict(logits),
    "released_disagreement": lambda logits, labels: released_disagreement(logits),
    "pairwise_kl": lambda logits, labels: pairwise_kl(logits),
    "q_statistic": q_statistic,
    "double_fault": double_fault,
}


def diversity(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Measure how much heads differ, by every measure of this module; a single head, having no pair, gives NaNs.

    Args:
        logits: `[M, N, K]`.
        labels: `[N]`.

    Raises:
        EvaluationError: Labels that don't fit, or no logits.

    Example:
        >>> diversity(torch.zeros(1, 4, 2), torch.zeros(4, dtype=torch.long))["disagreement"]
        nan
    """
    check_labels(head_logits_of(logits, "diversity"), labels, "diversity")
    single = len(logits) == 1
    return {name: math.nan if single else metric(logits, labels) for name, metric in DIVERSITY.items()}
