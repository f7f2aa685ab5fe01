"""Votes: one output from the outputs of M heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxsplit._errors import SplitError

Vote = str | Callable[[Tensor], Tensor]


class MeanVote(nn.Module):
    """The mean of the heads' outputs, tensor by tensor.

    Only floating tensors are averaged; of anything else the first head's is taken. One head is passed through as it is.

    Shapes: every head gives the same structure of tensors ``[...]``, and so does the vote.

    Example:
        >>> MeanVote()((torch.tensor([1.0, 3.0]),), (torch.tensor([3.0, 3.0]),))
        (tensor([2., 3.]),)
    """

    def forward(self, *heads: Any) -> Any:
        """Average structures of tensors, one per head."""
        return _vote_each(heads, lambda index, values: mean(values))


class ProbVote(nn.Module):
    """The logarithm of the mean of the heads' probabilities: log((1/M) sum_m softmax(z_m)).

    A softmax leaves the result's probabilities unchanged, so it replaces logits in any loss, metric or sampler
    (NeuroTrails, Algorithm 1). The classes are dimension 1 of tensors ``[B, C, H, W]`` and ``[B, C, D, H, W]`` and the
    last one otherwise. Floating tensors that are no scores (losses) are averaged. One head is passed through as it is.

    Args:
        scores: Positions, among the leaves of a head's output, of the scores; None means all floating tensors of at
            least two dimensions.

    Example:
        >>> half = torch.tensor([[0.0, 0.0]])
        >>> ProbVote()((half,), (half + 7,))[0].exp()
        tensor([[0.5000, 0.5000]])
    """

    def __init__(self, scores: Sequence[int] | None = None) -> None:
        super().__init__()
        self.scores = None if scores is None else tuple(scores)

    def forward(self, *heads: Any) -> Any:
        """Vote over structures of tensors, one per head."""
        return _vote_each(heads, lambda i, v: log_mean_probability(v) if _is_score(self.scores, i, v[0]) else mean(v))

    def extra_repr(self) -> str:
        """Shown by print."""
        return "" if self.scores is None else f"scores={self.scores}"


class CallableVote(nn.Module):
    """A vote by the user: ``fn`` maps the stacked scores ``[M, ...]`` of the heads to ``[...]``.

    Floating tensors that are no scores (losses) are averaged.

    Args:
        fn: Any function of one tensor; a module becomes part of the network.
        scores: As for `ProbVote`.

    Raises:
        SplitError: When called, if ``fn`` returns another shape than ``[...]``.

    Example:
        >>> vote = CallableVote(lambda stack: stack.amax(0))
        >>> vote((torch.tensor([[1.0, 5.0]]),), (torch.tensor([[2.0, 0.0]]),))
        (tensor([[2., 5.]]),)
    """

    def __init__(self, fn: Callable[[Tensor], Tensor], scores: Sequence[int] | None = None) -> None:
        super().__init__()
        self.fn = fn
        self.scores = None if scores is None else tuple(scores)

    def forward(self, *heads: Any) -> Any:
        """Vote over structures of tensors, one per head."""
        return _vote_each(heads, lambda i, v: self._ask(v) if _is_score(self.scores, i, v[0]) else mean(v))

    def _ask(self, values: list[Tensor]) -> Tensor:
        voted = self.fn(torch.stack(values))
        if not isinstance(voted, Tensor) or voted.shape != values[0].shape:
            got = list(voted.shape) if isinstance(voted, Tensor) else type(voted).__name__
            raise SplitError(
                f"The vote function returned {got} for the scores of {len(values)} heads; expected the shape of one "
                f"head's, {list(values[0].shape)}: it has to reduce dimension 0 of its argument."
            )
        return voted


def make_vote(vote: Vote, places: Sequence[str]) -> nn.Module:
    """The voting module for ``vote=``.

    Args:
        vote: ``'mean'``, ``'prob'`` or a function of the stacked scores.
        places: Where each leaf of a head's output belongs in the model's output. If one is called ``'logits'``, it
            alone holds scores.

    Raises:
        SplitError: ``vote`` is neither.
    """
    logits = [index for index, place in enumerate(places) if place.rpartition(".")[2] == "logits"] or None
    if vote == "mean":
        return MeanVote()
    if vote == "prob":
        return ProbVote(logits)
    if callable(vote):
        return CallableVote(vote, logits)
    raise SplitError(f"vote must be 'mean', 'prob' or a function of the stacked scores [M, ...], got {vote!r}.")


def mean(values: Sequence[Tensor]) -> Tensor:
    """The mean of tensors of one shape; a single one is returned as it is."""
    if len(values) == 1:
        return values[0]
    total = values[0] + values[1]
    for value in values[2:]:
        total = total + value
    return total / len(values)


def log_mean_probability(logits: Sequence[Tensor]) -> Tensor:
    """log((1/M) sum_m softmax(z_m)); half precision is computed in float32."""
    if len(logits) == 1:
        return logits[0]
    dim = 1 if logits[0].ndim in (4, 5) else -1
    dtype = torch.promote_types(logits[0].dtype, torch.float32)
    log_probability = torch.stack([torch.log_softmax(z, dim, dtype=dtype) for z in logits])
    return (torch.logsumexp(log_probability, 0) - math.log(len(logits))).to(logits[0].dtype)


def _is_score(scores: Sequence[int] | None, index: int, value: Tensor) -> bool:
    return value.ndim >= 2 if scores is None else index in scores


def _vote_each(heads: Sequence[Any], vote: Callable[[int, list[Tensor]], Tensor]) -> Any:
    """Apply ``vote(index of the leaf, one value per head)`` to every floating leaf."""
    flat = [pytree.tree_flatten(head)[0] for head in heads]
    results = [
        vote(index, list(values)) if isinstance(values[0], Tensor) and values[0].is_floating_point() else values[0]
        for index, values in enumerate(zip(*flat, strict=True))
    ]
    return pytree.tree_unflatten(results, pytree.tree_flatten(heads[0])[1])
