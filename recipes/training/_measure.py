"""Quality on a validation part while training goes on: sums over batches, so that no logits are kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import fxsplit
from recipes.training._errors import TrainingError
from recipes.training._processes import Processes


def logits_of(output: Any) -> Tensor:
    """Return the logits of a model's output: the tensor itself, or ``.logits`` of what transformers returns."""
    return output if isinstance(output, Tensor) else output.logits


def flat_logits(output: Any) -> Tensor:
    """Return logits `[N, K]` of classes, or of tokens `[B, T, K]` as `[B T, K]`."""
    return logits_of(output).flatten(0, -2)


def head_logits(net: nn.Module, x: Tensor) -> Tensor:
    """Compute each head's logits, `[M, N, K]`; a plain network is a single head."""
    outputs = net.head_outputs(x) if isinstance(net, fxsplit.SplitModel) else [net(x)]
    return torch.stack([flat_logits(output).float() for output in outputs])


@torch.no_grad()
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
    training = net.training
    net.eval()
    sums: Tensor | None = None
    try:
        for x, y in batches:
            part = _sums(head_logits(net, x), y.flatten())
            sums = part if sums is None else sums + part
    finally:
        net.train(training)
    if sums is None:
        sums = torch.zeros(4, dtype=torch.float64, device=processes.device)
    count, right, loss, differing = processes.sum(sums).tolist()
    if not count:
        raise TrainingError("The validation part is empty, so nothing can be measured on it.")
    return {"accuracy": right / count, "nll": loss / count, "disagreement": differing / count}


def _sums(logits: Tensor, y: Tensor) -> Tensor:
    voted = torch.logsumexp(functional.log_softmax(logits, -1), 0) - math.log(len(logits))
    predictions = logits.argmax(-1)
    pairs = [(one != other).double().sum() for one, other in itertools.combinations(predictions, 2)]
    differing = torch.stack(pairs).mean() if pairs else torch.full((), math.nan, dtype=torch.float64, device=y.device)
    right = (voted.argmax(-1) == y).double().sum()
    loss = functional.nll_loss(voted, y, reduction="sum").double()
    return torch.stack([torch.tensor(float(len(y)), dtype=torch.float64, device=y.device), right, loss, differing])
