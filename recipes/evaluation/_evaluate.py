"""All metrics of a test set at once, from the logits of every head."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from recipes.evaluation._inputs import check_labels, head_logits_of
from recipes.evaluation._pairs import diversity
from recipes.evaluation._quality import QUALITY, quality
from recipes.evaluation._votes import AGGREGATIONS

HEADLINE = (
    *(f"{metric}_{vote}" for vote in AGGREGATIONS for metric in ("accuracy", "nll", "ece")),
    "disagreement",
    "head_accuracy",
)


def evaluate(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Measure an ensemble from the logits of its heads.

    Args:
        logits: `[M, N, K]`, computed in evaluation mode.
        labels: `[N]`.

    Returns:
        `accuracy_*`, `nll_*` (nats), `ece_*` (15 bins of equal width, L1, top-1), `brier_*` and `aurc_*` for both
        aggregations `prob` and `logit` and, named `head_*`, as the mean over heads by themselves; and what `diversity`
        gives, NaN for a single head.

    Raises:
        EvaluationError: Logits and labels don't fit each other, or there are NaNs.

    Example:
        >>> logits = torch.tensor([[[4.0, 0.0], [0.0, 4.0]]])
        >>> evaluate(logits, torch.tensor([0, 1]))["accuracy_prob"]
        1.0
    """
    checked = head_logits_of(logits, "evaluate")
    check_labels(checked, labels, "evaluate")
    measured = {}
    for vote, aggregate in AGGREGATIONS.items():
        measured |= {f"{metric}_{vote}": value for metric, value in quality(aggregate(checked), labels).items()}
    heads = evaluate_heads(checked, labels)
    measured |= {f"head_{metric}": sum(head[metric] for head in heads) / len(heads) for metric in QUALITY}
    # In double precision, from counts: the mean of torchmetrics' float32 accuracies is off in the eighth digit.
    measured["head_accuracy"] = (checked.argmax(dim=-1) == labels).double().mean().item()
    return measured | diversity(checked, labels)


def evaluate_heads(logits: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """Measure every head by itself: `accuracy`, `nll`, `ece`, `brier` and `aurc`.

    Args:
        logits: `[M, N, K]`, computed in evaluation mode.
        labels: `[N]`.

    Raises:
        EvaluationError: Logits and labels don't fit each other, or there are NaNs.

    Example:
        >>> logits = torch.tensor([[[4.0, 0.0]], [[0.0, 4.0]]])
        >>> [head["accuracy"] for head in evaluate_heads(logits, torch.tensor([0]))]
        [1.0, 0.0]
    """
    checked = head_logits_of(logits, "evaluate_heads")
    check_labels(checked, labels, "evaluate_heads")
    return [quality(functional.log_softmax(head, dim=-1), labels) for head in checked]


def headline(measured: dict[str, float]) -> dict[str, float]:
    """Pick what the results table of a demo shows out of `evaluate`'s numbers.

    Example:
        >>> measured = evaluate(torch.zeros(2, 4, 3), torch.tensor([0, 1, 2, 0]))
        >>> sorted(set(measured) - set(headline(measured)))[:3]
        ['any_conflict', 'aurc_logit', 'aurc_prob']
    """
    return {name: measured[name] for name in HEADLINE}
