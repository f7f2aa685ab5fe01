"""Temperature scaling: one number, fitted on a validation set, that makes confidences honest (Guo et al. 2017).

There are two places for it. *Before* the vote every head's logits are divided by T, then the heads vote; a mean of
probabilities may then choose another class than it did. *After* the vote the voted log-probabilities are divided by T
and normalised again ("pool, then calibrate", Rahaman and Thiery 2021): the order of the classes, and so the accuracy,
stays as it was. For the mean logit both are the same. T is fitted for the place where it is applied.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from recipes.evaluation._errors import EvaluationError
from recipes.evaluation._inputs import check_labels, head_logits_of
from recipes.evaluation._votes import Vote, mean_probability

Place = Callable[[Vote, Tensor, float], Tensor]

# Temperatures that are looked at; an optimum at an end is none.
COLDEST, HOTTEST = 1 / 64, 64.0


def before_vote(vote: Vote, logits: Tensor, temperature: float) -> Tensor:
    """Divide every head's logits by the temperature, then vote: `[M, N, K]` to log-probabilities `[N, K]`.

    Example:
        >>> before_vote(mean_probability, torch.tensor([[[2.0, 0.0]]]), 2.0).softmax(-1)
        tensor([[0.7311, 0.2689]])
    """
    return vote(logits / temperature)


def after_vote(vote: Vote, logits: Tensor, temperature: float) -> Tensor:
    """Vote, then divide the log-probabilities by the temperature: `[M, N, K]` to log-probabilities `[N, K]`.

    Example:
        >>> after_vote(mean_probability, torch.tensor([[[2.0, 0.0]]]), 2.0).softmax(-1)
        tensor([[0.7311, 0.2689]])
    """
    return functional.log_softmax(vote(logits) / temperature, dim=-1)


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature, which turns logits `[M, N, K]` into calibrated log-probabilities `[N, K]`.

    Args:
        value: T; above 1 the network was too sure of itself.
        vote: How heads vote.
        place: Where T is applied: `before_vote` or `after_vote`.
    """

    value: float
    vote: Vote
    place: Place

    def __call__(self, logits: Tensor) -> Tensor:
        """Vote over logits `[M, N, K]` at this temperature."""
        return self.place(self.vote, head_logits_of(logits, "Temperature"), self.value)


def fit_temperature(
    logits: Tensor, labels: Tensor, vote: Vote = mean_probability, place: Place = after_vote
) -> Temperature:
    """Find the temperature with the smallest NLL on a validation set.

    Args:
        logits: `[M, N, K]` on the validation set, never on the test set.
        labels: `[N]`.
        vote: How heads vote.
        place: `after_vote` or `before_vote`.

    Returns:
        Call it with logits `[M, N, K]`.

    Raises:
        EvaluationError: The validation set is empty, or logits and labels don't fit each other.

    Warns:
        UserWarning: The NLL falls up to the end of the range, as it does if every or no prediction is right.

    Example:
        >>> logits = torch.tensor([[[9.0, 0.0], [9.0, 0.0], [9.0, 0.0], [0.0, 9.0]]])
        >>> temperature = fit_temperature(logits, torch.tensor([0, 0, 0, 0]))
        >>> round(9 / temperature.value, 3), round(math.log(3), 3)
        (1.099, 1.099)
    """
    if logits.ndim == 3 and logits.shape[1] == 0:
        raise EvaluationError(
            "fit_temperature: the validation split is empty, so there is nothing to fit the temperature on. Hold "
            "out a part of the training data; the test set must not be used."
        )
    logits = head_logits_of(logits, "fit_temperature").double()
    check_labels(logits, labels, "fit_temperature")

    def loss(log_temperature: float) -> float:
        return functional.nll_loss(place(vote, logits, math.exp(log_temperature)), labels).item()

    value, inner = _lowest(loss, math.log(COLDEST), math.log(HOTTEST))
    if not inner:
        warnings.warn(
            f"The NLL on {len(labels)} validation inputs has no lowest point at temperatures from {COLDEST:.3g} to "
            f"{HOTTEST:.3g}; the temperature is {math.exp(value):.3g}. If every prediction is right, or hardly one "
            "is, use a larger validation set, or leave temperature scaling out.",
            UserWarning,
            stacklevel=2,
        )
    return Temperature(math.exp(value), vote, place)


def _lowest(loss: Callable[[float], float], low: float, high: float, points: int = 13) -> tuple[float, bool]:
    """Minimise a function of one number: a grid, because the loss before the vote need not be convex, then Brent.

    Returns:
        The lowest point, and whether it is lower than both ends.
    """
    from scipy.optimize import minimize_scalar

    grid = torch.linspace(low, high, points, dtype=torch.double).tolist()
    losses = [loss(point) for point in grid]
    best = min(range(points), key=losses.__getitem__)
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, points - 1)]
    found: Any = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    end = low if losses[0] <= losses[-1] else high
    if min(losses[0], losses[-1]) <= found.fun:
        return end, False
    return float(found.x), True
