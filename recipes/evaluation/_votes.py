"""Votes: one prediction from the logits of all heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

Vote = Callable[[Tensor], Tensor]


def mean_probability(logits: Tensor) -> Tensor:
    """Average the heads' probabilities: `log mean_m softmax(logits_m)`, `[M, ..., K]` to `[..., K]`.

    Soft voting of NeuroTrails, Algorithm 1 (arXiv 2505.17909).

    Example:
        >>> mean_probability(torch.zeros(3, 1, 2)).exp()
        tensor([[0.5000, 0.5000]])
    """
    return torch.logsumexp(functional.log_softmax(logits, dim=-1), dim=0) - math.log(len(logits))


def mean_logit(logits: Tensor) -> Tensor:
    """Average the heads' logits and normalise: `log softmax(mean_m logits_m)`, `[M, ..., K]` to `[..., K]`.

    Soft voting as section 3 of NeuroTrails writes it.

    Example:
        >>> mean_logit(torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]])).exp()
        tensor([[0.5000, 0.5000]])
    """
    return functional.log_softmax(logits.mean(dim=0), dim=-1)


AGGREGATIONS: Mapping[str, Vote] = {"prob": mean_probability, "logit": mean_logit}
