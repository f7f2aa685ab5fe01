"""Exact selection of the smallest entries of tensors that are sharded over processes, without gathering them.

The order statistic is found digit by digit: floats map to integers of the same order, and the processes add up how
many of their entries have each value of the next digit. Only these counts travel, a few kilobytes in a few rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsity._sharded import aligned, before, group_of, joined, local, total

_DIGIT = 11  # bits: counts of 16 KB, three rounds for 32 bits and six for 64
_INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


def smallest_of(scores: Sequence[Tensor], count: int, among: Sequence[Tensor]) -> list[Tensor]:
    """Return bool masks of the ``count`` entries of smallest score in all tensors and all processes together.

    The same entries as of one process that holds everything: of equal scores those of earlier tensors are taken, in
    them the first in row-major order. To be called in all processes.

    Args:
        scores: Not NaN where ``among`` is True; of one dtype. Sharded as ``among``, or plain and the same everywhere.
        count: At most the number of True in all of ``among``.
        among: Bool tensors of the same shapes, sharded by rows, or plain and the same everywhere.
    """
    groups = [group_of(each) for each in among]
    places = [local(each).reshape(-1) for each in among]
    keys = [_keys(aligned(score, each)) for score, each in zip(scores, among, strict=True)]
    # Computed on one device; the choice goes back to where each tensor lies.
    device = keys[0].device
    keys, places = [key.to(device) for key in keys], [each.to(device) for each in places]
    threshold, missing = _threshold(keys, count, places, groups)
    chosen = [(key < threshold).logical_and_(each) for key, each in zip(keys, places, strict=True)]
    tied = [(key == threshold).logical_and_(each) for key, each in zip(keys, places, strict=True)]
    numbers = torch.stack([each.sum() for each in tied])
    offsets = before(numbers, groups)
    totals = total(numbers.clone(), groups)
    for one, equal, offset, number in zip(chosen, tied, offsets, totals, strict=True):
        one.logical_or_(equal.logical_and_(equal.cumsum(0) + offset <= missing))
        missing = missing - number
    return [joined(one.to(each.device).view(local(each).shape), each) for one, each in zip(chosen, among, strict=True)]


def _keys(score: Tensor) -> Tensor:
    """Return integers in the order of the local scores, flat and equal where the scores are equal."""
    part = local(score).reshape(-1)
    if part.dtype not in _INTEGER:
        part = part.float()
    part = part + 0.0  # a zero has one sign then
    bits = part.view(_INTEGER[part.dtype])
    # Of negative numbers the bits beside the sign are turned round, since their order is that of the magnitude.
    return bits ^ ((bits >> (bits.itemsize * 8 - 1)) & torch.iinfo(bits.dtype).max)


def _threshold(
    keys: Sequence[Tensor], count: int, among: Sequence[Tensor], groups: Sequence[Any]
) -> tuple[Tensor, Tensor]:
    """Return the ``count``-th smallest key, and how many of that value belong to the ``count`` smallest."""
    width = keys[0].itemsize * 8
    candidates = [key[each] for key, each in zip(keys, among, strict=True)]
    rank = torch.tensor(count, device=keys[0].device)
    threshold = torch.zeros((), dtype=keys[0].dtype, device=keys[0].device)
    for low, bits in _digits(width):
        digits = [_digit(each, low, bits, width) for each in candidates]
        counts = torch.stack([torch.bincount(each, minlength=1 << bits) for each in digits], 1)
        reached = total(counts, groups).sum(1).cumsum(0)
        digit = (reached < rank).sum()
        rank = rank - torch.where(digit > 0, reached[digit - 1], 0)
        candidates = [each[own == digit] for each, own in zip(candidates, digits, strict=True)]
        # The first digit was shifted to start at zero; adding wraps around to the sign.
        value = digit - (1 << (bits - 1)) if low + bits == width else digit
        threshold = threshold + (value.to(threshold.dtype) << low)
    return threshold, rank


def _digits(width: int) -> Iterator[tuple[int, int]]:
    """Yield position and width in bits of each digit, the highest first."""
    high = width
    while high:
        bits = min(_DIGIT, high)
        high -= bits
        yield high, bits


def _digit(keys: Tensor, low: int, bits: int, width: int) -> Tensor:
    shifted = keys >> low  # keeps the sign
    return shifted + (1 << (bits - 1)) if low + bits == width else shifted & ((1 << bits) - 1)
