"""Quality on a validation part while training goes on: sums over batches, so that no logits are kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes.evaluation import evaluation_mode, head_outputs, logits_of, mean_probability
from recipes.training._errors import TrainingError
from recipes.training._processes import Processes


def predictions(output: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits `[N, K]` and what they predict, `[N]`.

    Args:
        output: Of a classifier, logits `[B, K]`; of a language model, `[B, T, K]`, where each token predicts the next.
        y: Labels `[B]`; or the tokens themselves, `[B, T]`.

    Example:
        >>> logits, targets = predictions(torch.zeros(2, 5, 9), torch.arange(10).reshape(2, 5))
        >>> logits.shape, targets.tolist()
        (torch.Size([8, 9]), [1, 2, 3, 4, 6, 7, 8, 9])
    """
    logits = logits_of(output)
    if logits.ndim == 3:
        logits, y = logits[:, :-1], y[:, 1:]
    return logits.flatten(0, -2), y.flatten()


def measure(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], processes: Processes) -> dict[str, float]:
    """Measure accuracy, NLL of the mean probability, and disagreement of heads, in evaluation mode.

    Args:
        net: A split model, or any network; its mode is put back afterwards.
        batches: This process's share of the part.
        processes: All that share it.

    Returns:
        ``accuracy``, ``nll`` (nats) and ``disagreement`` (mean over pairs of heads; NaN for a single head).

    Raises:
        TrainingError: There is nothing to measure on.
    """
    sums: Tensor | None = None
    with evaluation_mode(net):
        for x, y in batches:
            found = [predictions(output, y) for output in head_outputs(net, x)]
            part = _sums(torch.stack([logits.float() for logits, _ in found]), found[0][1])
            sums = part if sums is None else sums + part
    if sums is None:
        sums = torch.zeros(4, dtype=torch.float64, device=processes.device)
    count, right, loss, differing = processes.sum(sums).tolist()
    if not count:
        raise TrainingError("The validation part is empty, so nothing can be measured on it.")
    return {"accuracy": right / count, "nll": loss / count, "disagreement": differing / count}


def _sums(logits: Tensor, y: Tensor) -> Tensor:
    voted = mean_probability(logits)
    chosen = logits.argmax(-1)
    pairs = [(one != other).double().sum() for one, other in itertools.combinations(chosen, 2)]
    differing = torch.stack(pairs).mean() if pairs else torch.full((), math.nan, dtype=torch.float64, device=y.device)
    right = (voted.argmax(-1) == y).double().sum()
    loss = functional.nll_loss(voted, y, reduction="sum").double()
    return torch.stack([torch.tensor(float(len(y)), dtype=torch.float64, device=y.device), right, loss, differing])
