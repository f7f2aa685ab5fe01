"""Exact selection of the smallest entries of one tensor or of several together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from sparsity import _magnitudes, _sharded_smallest
from sparsity._bits import count as count_true
from sparsity._bits import slices
from sparsity._kernel import WORTH
from sparsity._magnitudes import Magnitudes, Selection
from sparsity._sharded import is_sharded, local

Read = Callable[[slice], Tensor]
Scores = Tensor | Read

_SAMPLES = 1 << 14
_WORTH_SAMPLING = 1 << 17


def smallest(score: Scores, count: int, among: Tensor, *, outside: bool = False) -> Tensor:
    """Return a bool mask of the ``count`` entries of smallest ``score`` where ``among`` is True.

    Of equal scores the first in row-major order are taken, so that the result is exact and the same on every device.
    On other devices than the CPU nothing is copied to the host.

    Args:
        score: Not NaN where ``among`` is True. A tensor, or a function that computes a slice of the row-major entries
            of one on the CPU, so that it is never there as a whole.
        count: At most the number of True in ``among``.
        among: Bool tensor of the same shape.
        outside: Choose where ``among`` is False instead.

    Example:
        >>> smallest(torch.tensor([2.0, 1.0, 2.0, 0.0]), 2, torch.tensor([True, True, True, False]))
        tensor([ True,  True, False, False])
    """
    return smallest_of([score], count, [among], outside=outside)[0]


def smallest_of(
    scores: Sequence[Scores], count: int, among: Sequence[Tensor], *, outside: bool = False
) -> list[Tensor]:
    """Do as `smallest` with several tensors as if they were one; of equal scores those of earlier tensors are taken.

    Args:
        scores: Not NaN where ``among`` is True.
        count: At most the number of True in all of ``among``.
        among: Bool tensors of the same shapes.
        outside: Choose where ``among`` is False instead.
    """
    return smallest_of_each([[Selection(scores, count, among, outside)]])[0]


def smallest_of_each(groups: Iterable[Iterable[Selection[Scores]]]) -> list[list[Tensor]]:
    """Do as `smallest_of` with each selection, and return for each group what any of its selections has chosen.

    The selections of a group, one or two, choose from the same tensors; of two, one is ``outside``. Those of magnitudes
    are made together in the end, the others before the next one is asked for.
    """
    made: list[list[Tensor]] = []
    places: list[Sequence[Tensor]] = []
    waiting: dict[int, list[Selection[Magnitudes]]] = {}
    for number, group in enumerate(groups):
        made.append([])
        places.append([])
        for each in group:
            places[number] = each.among
            if _of_magnitudes(each):
                waiting.setdefault(number, []).append(each)
            elif each.count:
                made[number] = _either(made[number], _smallest_of(each))
    together = _magnitudes.smallest_of_each(list(waiting.values()))
    for (number, group), chosen in zip(waiting.items(), together, strict=True):
        found = map(_smallest_of, group) if chosen is None else [_shaped(chosen, places[number])]
        for one in found:
            made[number] = _either(made[number], one)
    return [one or [torch.zeros_like(each) for each in among] for one, among in zip(made, places, strict=True)]


def _of_magnitudes(selection: Selection[Scores]) -> TypeGuard[Selection[Magnitudes]]:
    large = selection.count > 0 and sum(each.numel() for each in selection.among) >= WORTH
    return large and all(isinstance(each, Magnitudes) for each in selection.scores)


def _either(ones: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """Return where either is True, in the memory of the first; one may be empty."""
    for one, other in zip(ones, others, strict=bool(ones)):
        local(one).logical_or_(local(other))
    return ones or others


def _shaped(vectors: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    return [vector.view(tensor.shape) for vector, tensor in zip(vectors, like, strict=True)]


def _smallest_of(selection: Selection[Any]) -> list[Tensor]:
    scores, count, among = selection.scores, selection.count, selection.among
    if selection.outside:
        among = [~each for each in among]
    if any(map(is_sharded, among)):
        computed = [_computed(score, each) for score, each in zip(scores, among, strict=True)]
        return _sharded_smallest.smallest_of(computed, count, among)
    # Row-major views; those that are laid out otherwise are copied.
    places = [each.reshape(-1) for each in among]
    devices = {each.device for each in scores if isinstance(each, Tensor)} | {each.device for each in among}
    if len(devices) > 1:
        device = among[0].device
        moved = [_computed(score, each).to(device) for score, each in zip(scores, among, strict=True)]
        chosen = smallest_of(moved, count, [each.to(device) for each in places])
        return _shaped([one.to(each.device) for one, each in zip(chosen, among, strict=True)], among)
    reads = _readers(scores)
    bracket = _bracket(reads, count, places) if among[0].device.type == "cpu" else None
    chosen = _between(reads, count, places, *bracket) if bracket is not None else None
    if chosen is None:
        chosen = _whole([read(slice(None)) for read in reads], count, places)
    return _shaped(chosen, among)


def _computed(score: Scores, like: Tensor) -> Tensor:
    return score if isinstance(score, Tensor) else score(slice(None)).view(like.shape)


def _readers(scores: Sequence[Scores]) -> list[Read]:
    """Return what reads the scores as floats of one dtype, to which each of theirs is converted without loss."""
    reads = [score.reshape(-1).__getitem__ if isinstance(score, Tensor) else score for score in scores]
    dtype = _sharded_smallest.common_dtype([read(slice(0, 0)).dtype for read in reads])

    def reader(read: Read) -> Read:
        return lambda part: read(part).to(dtype)

    return [reader(read) for read in reads]


def _whole(flat: list[Tensor], count: int, among: list[Tensor]) -> list[Tensor]:
    """Select by the order statistic of all entries."""
    filled = [torch.where(each, score, math.inf) for score, each in zip(flat, among, strict=True)]
    threshold = _order_statistic(filled[0] if len(filled) == 1 else torch.cat(filled), count)
    below = [score < threshold for score in filled]
    tied = [(score == threshold) & each for score, each in zip(filled, among, strict=True)]
    missing = count - torch.stack([each.sum() for each in below]).sum()
    chosen = []
    for smaller, equal in zip(below, tied, strict=True):
        index = torch.int32 if equal.numel() < 2**31 else torch.int64  # several times faster where it is enough
        chosen.append(smaller | (equal & (equal.cumsum(0, dtype=index) <= missing)))
        missing = missing - equal.sum()
    return chosen


def _order_statistic(flat: Tensor, rank: int) -> Tensor:
    """Return the ``rank``-th smallest value as a tensor; which of several equal entries it was is left open."""
    if flat.device.type == "cpu":
        return flat.kthvalue(rank).values
    # kthvalue is slow for one long row on a GPU, and refused under use_deterministic_algorithms.
    return flat.topk(rank, largest=False, sorted=False).values.max()


def _bracket(reads: list[Read], count: int, among: list[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Guess two values, from a sample, with the order statistic between them; None where it is not worth the effort."""
    total = sum(each.numel() for each in among)
    if total < _WORTH_SAMPLING:
        return None
    part = slice(None, None, _sampling_step(total // _SAMPLES))
    sample = torch.cat([read(part)[each[part]] for read, each in zip(reads, among, strict=True)])
    available = sum(int(count_true(each)) for each in among)
    if len(sample) < _SAMPLES // 64:
        return None
    share = count / available
    expected, deviation = share * len(sample), math.sqrt(share * (1 - share) * len(sample))
    low, high = math.floor(expected - 6 * deviation) - 2, math.ceil(expected + 6 * deviation) + 2
    ordered = sample.sort().values
    infinite = ordered.new_tensor(math.inf)
    return (
        ordered[low] if low >= 0 else -infinite,
        ordered[high] if high < len(ordered) else infinite,
    )


def _sampling_step(step: int) -> int:
    """Return a distance that shares no small factor with rows and kernels, whose entries would not all be met."""
    while math.gcd(step, 2 * 3 * 5 * 7) > 1:
        step += 1
    return step


def _between(reads: list[Read], count: int, among: list[Tensor], low: Tensor, high: Tensor) -> list[Tensor] | None:
    """Take all below ``low`` and select exactly among the few up to ``high``; None if the guess was wrong."""
    below = [torch.empty_like(each) for each in among]
    values, candidates = [], []
    for read, each, under in zip(reads, among, below, strict=True):
        found = []
        for part in slices(len(each)):
            score, available, taken = read(part), each[part], under[part]
            torch.lt(score, low, out=taken).logical_and_(available)
            few = _indices((score <= high).logical_and_(available).logical_xor_(taken))
            values.append(score[few])
            found.append(few + part.start)
        candidates.append(torch.cat(found))
    missing = count - sum(int(count_true(each)) for each in below)
    near = torch.cat(values)
    if not 0 <= missing <= len(near):
        return None
    if missing:
        everywhere = torch.ones_like(near, dtype=torch.bool)
        # Fewer each time, unless most of them are equal.
        again = smallest if 2 * len(near) < sum(each.numel() for each in among) else _whole_of_one
        chosen = again(near, missing, everywhere)
        for under, places, own in zip(below, candidates, chosen.split([len(c) for c in candidates]), strict=True):
            under[places[own]] = True
    return below


def _whole_of_one(score: Tensor, count: int, among: Tensor) -> Tensor:
    return _whole([score], count, [among])[0]


def _indices(few: Tensor) -> Tensor:
    """Return the indices of True in a bool vector with few of them, looking at eight places at a time first."""
    whole = few.numel() // 8 * 8
    words = few[:whole].view(torch.int64).nonzero().squeeze(1)
    near = few[:whole].view(-1, 8)[words].nonzero()
    return torch.cat([words[near[:, 0]] * 8 + near[:, 1], few[whole:].nonzero().squeeze(1) + whole])
