"""Exact selection by magnitude on the CPU in one pass, by a compiled kernel; the same entries as without it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from ctypes import c_int, c_long
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from sparsity._kernel import kernel, lengths, pointers

Kind = TypeVar("Kind")

_ALIGNED = 64  # bytes


@dataclass(frozen=True)
class Magnitudes:
    """Scores that are the magnitudes of a vector, or with ``largest`` those times -1; computed where they are read."""

    vector: Tensor
    largest: bool = False

    def __call__(self, part: slice) -> Tensor:
        """Return the scores of a part."""
        sizes = self.vector[part].abs()
        return sizes.neg_() if self.largest else sizes


@dataclass(frozen=True)
class Selection(Generic[Kind]):
    """The ``count`` entries of smallest score in several tensors together, from those that one may choose from.

    Attributes:
        scores: Of each tensor; may be left out if ``count`` is 0.
        count: At most the number of entries to choose from.
        among: Bool tensors of the same numbers of entries.
        outside: Choose where these are False instead of True.
    """

    scores: Sequence[Kind]
    count: int
    among: Sequence[Tensor]
    outside: bool = False


def smallest_of_each(groups: Sequence[Sequence[Selection[Magnitudes]]]) -> list[list[Tensor] | None]:
    """Do as `sparsity._smallest.smallest_of_each` by the kernel, with at least one entry to choose from in each.

    None where there is no kernel for it.
    """
    able = [group for group in groups if all(map(_fits, group))]
    found = dict(zip(map(id, able), _by_kernel(able), strict=True)) if able else {}
    return [found.get(id(group)) for group in groups]


def _fits(selection: Selection[Magnitudes]) -> bool:
    vectors, orders = [each.vector for each in selection.scores], {each.largest for each in selection.scores}
    plain = all(each.device.type == "cpu" and each.is_contiguous() for each in (*vectors, *selection.among))
    return plain and len(orders) == 1 and all(vector.dtype == torch.float32 for vector in vectors)


def _by_kernel(groups: Sequence[Sequence[Selection[Magnitudes]]]) -> list[list[Tensor] | None]:
    library = kernel("selection")
    if library is None:
        return [None] * len(groups)
    selections = [each for group in groups for each in group]
    count = len(selections)
    vectors = [score.vector for each in selections for score in each.scores]
    masks = [mask.view(-1) for each in selections for mask in each.among]
    results, memory = _new([mask.numel() for group in groups for mask in group[0].among])
    parts = iter(results)
    of_groups = [list(itertools.islice(parts, len(group[0].among))) for group in groups]
    chosen = [part for group, own in zip(groups, of_groups, strict=True) for _ in group for part in own]
    numbers = (
        (c_int * count)(*(len(each.among) for each in selections)),
        (c_long * count)(*(each.count for each in selections)),
        (c_int * count)(*(each.outside for each in selections)),
        (c_int * count)(*(each.scores[0].largest for each in selections)),
    )
    where = pointers(vectors), pointers(masks), pointers(chosen), lengths(vectors)
    failed = (c_int * count)()
    library.selection_run(count, *numbers, *where, memory.data_ptr(), len(memory), failed, torch.get_num_threads())
    each_failed = iter(failed)
    lost = [sum(itertools.islice(each_failed, len(group))) for group in groups]
    return [None if any_lost else own for any_lost, own in zip(lost, of_groups, strict=True)]


def _new(sizes: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Return bool vectors, and the one piece of memory that they lie in."""
    spaced = [-(-size // _ALIGNED) * _ALIGNED for size in sizes]
    memory = torch.empty(sum(spaced), dtype=torch.bool)
    return [part[:size] for part, size in zip(memory.split(spaced), sizes, strict=True)], memory
