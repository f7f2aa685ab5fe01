"""Exact selection of the smallest entries of tensors that are sharded over processes, without gathering them.

The order statistic is found digit by digit: floats map to integers of the same order, and the processes add up how
many of their entries have each value of the next digit. Only these counts travel, a few kilobytes in a few rounds.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsity._sharded import aligned, group_of, joined, local, running, total

_DIGIT = 11  # bits: counts of 16 KB, three rounds for 32 bits and six for 64
_INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


def smallest_of(scores: Sequence[Tensor], count: int, among: Sequence[Tensor]) -> list[Tensor]:
    """Return bool masks of the ``count`` entries of smallest score in all tensors and all processes together.

    The same entries as of one process that holds everything: of equal scores those of earlier tensors are taken, in
    them the first in row-major order. To be called in all processes.

    Args:
        scores: Not NaN where ``among`` is True. Sharded as ``among``, or plain and the same everywhere.
        count: At most the number of True in all of ``among``.
        among: Bool tensors of the same shapes, sharded by rows, or plain and the same everywhere.
    """
    groups = [group_of(each) for each in among]
    scores = [local(aligned(score, each)).reshape(-1) for score, each in zip(scores, among, strict=True)]
    dtype = common_dtype([score.dtype for score in scores])
    dtype = dtype if dtype in _INTEGER else torch.float32
    scores = [score.to(dtype) for score in scores]
    # Computed on one device; the choice goes back to where each tensor lies.
    device = scores[0].device
    scores = [score.to(device) for score in scores]
    places = [local(each).reshape(-1).to(device) for each in among]
    keys = [_keys(score[each]) for score, each in zip(scores, places, strict=True)]
    threshold, missing, ties = _order_statistic(keys, count, groups)
    value = _keys_back(threshold, dtype)
    chosen = []
    for score, each, own, take in zip(scores, places, ties.tolist(), _takes(ties, missing, groups), strict=True):
        one = ((score <= value) if take else (score < value)).logical_and_(each)
        if 0 < take < own:
            equal = (score == value).logical_and_(each)
            one.logical_and_((equal.cumsum(0) <= take).logical_or_(~equal))
        chosen.append(one)
    return [joined(one.to(each.device).view(local(each).shape), each) for one, each in zip(chosen, among, strict=True)]


def common_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the floating-point dtype in which scores of these dtypes can be compared."""
    floats = (dtype if dtype.is_floating_point else torch.float32 for dtype in dtypes)
    return functools.reduce(torch.promote_types, floats)


def _keys(floats: Tensor) -> Tensor:
    """Return integers in the order of floats, equal where those are equal."""
    floats = floats + 0.0  # a zero has one sign then
    return _turned(floats.view(_INTEGER[floats.dtype]))


def _keys_back(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the floats of `_keys`."""
    return _turned(keys).view(dtype)


def _turned(bits: Tensor) -> Tensor:
    # Of negative numbers the bits beside the sign are turned round, since their order is that of the magnitude.
    signs = (bits >> (bits.itemsize * 8 - 1)).bitwise_and_(torch.iinfo(bits.dtype).max)
    return signs.bitwise_xor_(bits)


def _takes(ties: Tensor, missing: Tensor, groups: Sequence[Any]) -> list[int]:
    """Return how many of this process's ties belong to the smallest, given how many of all do."""
    numbers = torch.stack([*running(ties, groups), ties]).tolist()
    left, takes = int(missing), []
    for earlier, everywhere, own in zip(*numbers, strict=True):
        takes.append(min(max(left - earlier, 0), own))
        left -= everywhere
    return takes


def _order_statistic(keys: Sequence[Tensor], count: int, groups: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ``count``-th smallest key, how many like it are among the ``count`` smallest, and are here in each."""
    width = keys[0].itemsize * 8
    rank = torch.tensor(count, device=keys[0].device)
    threshold = torch.zeros((), dtype=keys[0].dtype, device=keys[0].device)
    for low, bits in _digits(width):
        digits = [_digit(each, low, bits, width) for each in keys]
        counts = torch.stack([torch.bincount(each, minlength=1 << bits) for each in digits], 1)
        reached = total(counts, groups).sum(1).cumsum(0)
        digit = (reached < rank).sum()
        rank = rank - torch.where(digit > 0, reached[digit - 1], 0)
        keys = [each[own == digit] for each, own in zip(keys, digits, strict=True)]
        # The first digit was shifted to start at zero; adding wraps around to the sign.
        value = digit - (1 << (bits - 1)) if low + bits == width else digit
        threshold = threshold + (value.to(threshold.dtype) << low)
    return threshold, rank, torch.tensor([len(each) for each in keys], device=threshold.device)


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
