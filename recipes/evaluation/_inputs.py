"""What every metric checks before it counts anything."""

from __future__ import annotations

import torch
from torch import Tensor

from recipes.evaluation._errors import EvaluationError

# How far the log of the sum of an input's probabilities may be from 0. bfloat16 rounds log-probabilities by up to .03.
_SLACK = 0.1


def head_logits_of(logits: Tensor, metric: str, *, fewest: int = 1) -> Tensor:
    """Check logits `[M, N, K]` and return them, half precision as float32.

    Args:
        logits: Of all heads.
        metric: Who asks, for the message.
        fewest: Number of heads it takes; 2 for metrics of pairs.

    Raises:
        EvaluationError: Not `[M, N, K]`, nothing in it, numbers that are none, or too few heads.
    """
    if logits.ndim != 3 or not logits.is_floating_point():
        raise EvaluationError(
            f"{metric}: expected floating logits of all heads, [M, N, K]; got {logits.dtype} {list(logits.shape)}. "
            "A single head is logits[None]."
        )
    if len(logits) < fewest:
        raise EvaluationError(
            f"{metric} compares pairs of heads, so it needs logits [M, N, K] of M >= {fewest} heads; got "
            f"M={len(logits)}. A single network has no such number; tables show it as NaN."
        )
    _check_size(logits, metric)
    _check_numbers(logits, metric, "logits", "head {}, input {}")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def log_probabilities_of(log_probabilities: Tensor, metric: str) -> Tensor:
    """Check log-probabilities `[N, K]` and return them, half precision as float32.

    Args:
        log_probabilities: Of a vote, or of one head.
        metric: Who asks, for the message.

    Raises:
        EvaluationError: Not `[N, K]`, nothing in it, numbers that are none, or probabilities whose sum isn't 1.
    """
    if log_probabilities.ndim != 2 or not log_probabilities.is_floating_point():
        raise EvaluationError(
            f"{metric}: expected floating log-probabilities [N, K]; got {log_probabilities.dtype} "
            f"{list(log_probabilities.shape)}. Vote over heads first: mean_probability(logits)."
        )
    _check_size(log_probabilities, metric)
    _check_numbers(log_probabilities, metric, "log-probabilities", "input {}")
    values = log_probabilities.to(torch.promote_types(log_probabilities.dtype, torch.float32))
    total = values.logsumexp(dim=-1)
    if not bool((total.abs() < _SLACK).all()):
        worst = int(total.abs().argmax())
        raise EvaluationError(
            f"{metric}: expected log-probabilities, but the probabilities of input {worst} have the sum "
            f"{total[worst].exp().item():.4g}. These look like logits: pass log_softmax(logits), or a vote."
        )
    return values


def check_labels(scores: Tensor, labels: Tensor, metric: str) -> None:
    """Check that labels `[N]` belong to scores `[..., N, K]`.

    Raises:
        EvaluationError: Another shape, labels that are no integers, or none of the K classes.
    """
    count, classes = scores.shape[-2:]
    if labels.shape != (count,):
        raise EvaluationError(
            f"{metric}: expected a label for each of {count} inputs, [{count}], because the scores are "
            f"{list(scores.shape)}; got labels {list(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise EvaluationError(f"{metric}: labels are class numbers; expected an integer tensor, got {labels.dtype}.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise EvaluationError(
            f"{metric}: the scores have {classes} classes, so labels lie in 0 to {classes - 1}; got {low} to {high}."
        )


def _check_size(values: Tensor, metric: str) -> None:
    if values.numel() == 0 or values.shape[-1] < 2:
        raise EvaluationError(
            f"{metric}: expected at least one input and two classes, got {list(values.shape)}. "
            "Is the split empty, or the limit of examples 0?"
        )


def _check_numbers(values: Tensor, metric: str, kind: str, place: str) -> None:
    """Refuse NaN, +inf, and inputs whose classes are all -inf; a single class may be ruled out by -inf."""
    peak = values.amax(dim=-1)  # NaN if there is one
    bad = ~peak.isfinite()
    if bool(bad.any()):
        where = bad.nonzero()[0].tolist()
        raise EvaluationError(
            f"{metric}: the {kind} of {int(bad.sum())} of {bad.numel()} rows are NaN or infinite, the first at "
            f"{place.format(*where)}. Did training diverge? Look at the loss, lower the learning rate, and start again "
            "from the last good checkpoint."
        )
