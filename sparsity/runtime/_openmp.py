"""The OpenMP library that torch runs its own threads with."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

_NAMES = ("GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num")


def addresses() -> tuple[int, int, int] | None:
    """Return where its functions lie that start threads, count them and number them; None if there is none.

    GNU's library has them, and those of Intel and LLVM have them too, for programs that GNU's compiler made.
    """
    torch_library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not hasattr(os, "RTLD_NOLOAD") or not torch.backends.openmp.is_available():
        return None
    try:
        # Found among all that torch has loaded, so it is the one that torch uses, wherever it came from.
        loaded = ctypes.CDLL(str(torch_library), mode=os.RTLD_NOLOAD)
        found = [ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value for name in _NAMES]
    except (OSError, AttributeError):
        return None
    first, second, third = found
    return (first, second, third) if first and second and third else None
