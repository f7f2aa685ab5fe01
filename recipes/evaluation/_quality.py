"""How good one prediction per input is, that of a vote or of a single head: accuracy, NLL, ECE, Brier score, AURC."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional

from recipes.evaluation._calibration import calibration_error, probabilities_of
from recipes.evaluation._inputs import check_labels, log_probabilities_of
from recipes.evaluation._selective import aurc


def accuracy(log_probabilities: Tensor, labels: Tensor) -> float:
    """Return the share of inputs whose most probable class is the right one.

    Args:
        log_probabilities: `[N, K]`.
        labels: `[N]`.

    Raises:
        EvaluationError: The inputs don't fit each other, or aren't log-probabilities.

    Example:
        >>> accuracy(torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log(), torch.tensor([1, 1]))
        0.5
    """
    from torchmetrics.functional.classification import multiclass_accuracy

    log_probabilities = log_probabilities_of(log_probabilities, "accuracy")
    check_labels(log_probabilities, labels, "accuracy")
    classes = log_probabilities.shape[-1]
    return multiclass_accuracy(probabilities_of(log_probabilities), labels, classes, average="micro").item()


def nll(log_probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean negative log-likelihood of the labels, in nats; infinite if a label got the probability 0.

    Args:
        log_probabilities: `[N, K]`.
        labels: `[N]`.

    Raises:
        EvaluationError: The inputs don't fit each other, or aren't log-probabilities.

    Example:
        >>> round(nll(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([1])), 4)
        0.6931
    """
    log_probabilities = log_probabilities_of(log_probabilities, "nll")
    check_labels(log_probabilities, labels, "nll")
    return functional.nll_loss(log_probabilities, labels).item()


def brier(log_probabilities: Tensor, labels: Tensor) -> float:
    """Return the Brier score: squared distance of the probabilities to the one-hot label, summed over classes.

    Args:
        log_probabilities: `[N, K]`.
        labels: `[N]`.

    Returns:
        The mean over inputs, from 0 to 2 (Brier 1950). Some authors divide it by K.

    Raises:
        EvaluationError: The inputs don't fit each other, or aren't log-probabilities.

    Example:
        >>> round(brier(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([1])), 4)
        0.125
    """
    log_probabilities = log_probabilities_of(log_probabilities, "brier")
    check_labels(log_probabilities, labels, "brier")
    probabilities = log_probabilities.double().exp()
    right = probabilities.gather(-1, labels[:, None])[:, 0]
    return (probabilities.square().sum(dim=-1) - 2 * right + 1).mean().item()


QUALITY: Mapping[str, Callable[[Tensor, Tensor], float]] = {
    "accuracy": accuracy,
    "nll": nll,
    "ece": calibration_error,
    "brier": brier,
    "aurc": aurc,
}


def quality(log_probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Measure one prediction per input: `accuracy`, `nll`, `ece`, `brier` and `aurc`.

    Args:
        log_probabilities: `[N, K]`.
        labels: `[N]`.

    Raises:
        EvaluationError: The inputs don't fit each other, or aren't log-probabilities.

    Example:
        >>> quality(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([1]))["accuracy"]
        1.0
    """
    return {name: metric(log_probabilities, labels) for name, metric in QUALITY.items()}
