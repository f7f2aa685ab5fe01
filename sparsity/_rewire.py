"""One layer's update: which weights are dropped and which are grown, exactly as many of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """What a drop or grow score may look at, all tensors of the weight's shape.

    Attributes:
        path: Name of the weight.
        weight: Its values, detached, zero where masked.
        mask: Bool, True where active, before the update.
        gradient: The unmasked gradient of this step, or None if the rule does not ask for it.
        generator: A random generator on the weight's device for this layer and step alone.
    """

    path: str
    weight: Tensor
    mask: Tensor
    gradient: Tensor | None
    generator: torch.Generator


Score = Callable[[Layer], Tensor]


def smallest(score: Tensor, count: int, among: Tensor) -> Tensor:
    """Return a bool mask of the ``count`` entries of smallest ``score`` where ``among`` is True.

    Of equal scores the first in row-major order are taken, so that the result is exact and the same on every device.
    Nothing is copied to the host.

    Args:
        score: Finite where ``among`` is True.
        count: At most the number of True in ``among``.
        among: Bool tensor of the same shape.

    Example:
        >>> smallest(torch.tensor([2.0, 1.0, 2.0, 0.0]), 2, torch.tensor([True, True, True, False]))
        tensor([ True,  True, False, False])
    """
    if count == 0:
        return torch.zeros_like(among)
    flat = torch.where(among, score, math.inf).flatten()
    threshold = _order_statistic(flat, count)
    below, tied = flat < threshold, flat == threshold
    index = torch.int32 if flat.numel() < 2**31 else torch.int64  # several times faster where it is enough
    chosen = below | (tied & (tied.cumsum(0, dtype=index) <= count - below.sum()))
    return chosen.view(among.shape)


def _order_statistic(flat: Tensor, rank: int) -> Tensor:
    """Return the ``rank``-th smallest value as a tensor; which of several equal entries it was is left open."""
    if flat.device.type == "cpu":
        return flat.kthvalue(rank).values
    # kthvalue is slow for one long row on a GPU, and refused under use_deterministic_algorithms.
    return flat.topk(rank, largest=False, sorted=False).values.max()


def rewire(layer: Layer, count: int, drop: Score, grow: Score) -> tuple[Tensor, Tensor]:
    """Return bool masks of the weights to drop and to grow, ``count`` of each.

    Dropped are the active weights of smallest drop score. Grown are, of those inactive before the update (so none that
    is dropped in it), the ones of largest grow score.

    Args:
        layer: The layer before the update.
        count: At most the number of active and the number of inactive weights.
        drop: Score of each weight, finite where active.
        grow: Score of each weight, finite where inactive.
    """
    return smallest(drop(layer), count, layer.mask), smallest(-grow(layer), count, ~layer.mask)
