"""Compiled kernels for masks of large tensors on the CPU; whoever uses one can do without it, and does the same."""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Sequence
from ctypes import POINTER, c_int, c_long, c_void_p

from torch import Tensor

WORTH = 1 << 17  # entries from which on a kernel is worth its call
_POINTERS, _INTS, _LONGS = POINTER(c_void_p), POINTER(c_int), POINTER(c_long)
_PROTOTYPES = {
    "selection": (
        "selection_run",
        [c_int, _INTS, _LONGS, _INTS, _INTS, *[_POINTERS] * 3, _LONGS, c_void_p, c_long, _INTS, c_int],
    ),
    "masking": ("masking_keep", [c_int, *[_POINTERS] * 2, _LONGS, *[c_int] * 3]),
}


@functools.cache
def kernel(source: str) -> ctypes.CDLL | None:
    """Return the library of a source file, built first if need be, or None if it can't be had."""
    from sparsity.runtime._build import library_path
    from sparsity.runtime._cpu import isa
    from sparsity.runtime._openmp import addresses

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = ctypes.CDLL(str(library_path(isa(), source)))
    except Exception:  # whatever it is, no training stops for it: torch does the same in several times as long
        return None
    name, arguments = _PROTOTYPES[source]
    getattr(loaded, name).argtypes = arguments
    use_openmp = getattr(loaded, f"{source}_use_openmp")
    use_openmp.argtypes = [c_void_p, c_void_p, c_void_p]
    openmp = addresses()
    if openmp is not None:
        use_openmp(*openmp)
    return loaded


def pointers(tensors: Sequence[Tensor]) -> ctypes.Array[c_void_p]:
    """Return where the tensors lie."""
    return (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def lengths(tensors: Sequence[Tensor]) -> ctypes.Array[c_long]:
    """Return the numbers of entries."""
    return (c_long * len(tensors))(*(tensor.numel() for tensor in tensors))
