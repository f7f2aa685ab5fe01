"""Exact selection by magnitude on the CPU in one pass, by a compiled kernel; the same entries as without it."""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Sequence
from ctypes import POINTER, c_int, c_long, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

_VERSION = 1


@dataclass(frozen=True)
class Magnitudes:
    """Scores that are the magnitudes of a vector, or with ``largest`` those times -1; computed where they are read."""

    vector: Tensor
    largest: bool = False

    def __call__(self, part: slice) -> Tensor:
        """Return the scores of a part."""
        sizes = self.vector[part].abs()
        return sizes.neg_() if self.largest else sizes


def smallest_of(
    scores: Sequence[Magnitudes], count: int, masks: Sequence[Tensor], outside: bool
) -> list[Tensor] | None:
    """Do as `sparsity._smallest.smallest_of`, or return None where the kernel can't be had or gives up.

    Args:
        scores: Of contiguous float32 vectors on the CPU for the kernel; all of them ``largest``, or none.
        count: From 1 to the number of entries to choose from.
        masks: Contiguous bool vectors of the same lengths.
        outside: Choose where the masks are False instead of True.
    """
    vectors, orders = [each.vector for each in scores], {each.largest for each in scores}
    known = all(vector.dtype == torch.float32 for vector in vectors) and len(orders) == 1
    if not known or not all(each.device.type == "cpu" and each.is_contiguous() for each in (*vectors, *masks)):
        return None
    kernel = _library()
    if kernel is None:
        return None
    chosen = [torch.empty_like(each) for each in masks]
    lengths = (c_long * len(vectors))(*map(len, vectors))
    where = [(c_void_p * len(each))(*(tensor.data_ptr() for tensor in each)) for each in (vectors, masks, chosen)]
    threads = torch.get_num_threads()
    failed = kernel.selection_run(len(vectors), *where, lengths, outside, count, orders.pop(), threads)
    return None if failed else chosen


@functools.cache
def _library() -> ctypes.CDLL | None:
    from sparsity.runtime._build import SELECTION, library_path
    from sparsity.runtime._cpu import isa
    from sparsity.runtime._openmp import addresses

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = ctypes.CDLL(str(library_path(isa(), SELECTION)))
    except Exception:  # whatever it is, no training stops for it: torch does the same in several times as long
        return None
    pointers = POINTER(c_void_p)
    arguments = [c_int, pointers, pointers, pointers, POINTER(c_long), c_int, c_long, c_int, c_int]
    loaded.selection_run.argtypes = arguments
    loaded.selection_use_openmp.argtypes = [c_void_p, c_void_p, c_void_p]
    openmp = addresses()
    if openmp is not None:
        loaded.selection_use_openmp(*openmp)
    return loaded if loaded.selection_version() == _VERSION else None
