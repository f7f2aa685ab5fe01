"""The built kernels as a ctypes library."""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, c_double, c_float, c_int, c_long, c_size_t, c_void_p

from sparsity._errors import BuildError
from sparsity.runtime._build import library_path
from sparsity.runtime._cpu import isa
from sparsity.runtime._openmp import addresses

_VERSION = 1
_INTS = POINTER(c_int)
_AFFINE = [c_void_p, c_void_p, c_int]  # scale, shift, relu
_PROTOTYPES: dict[str, tuple[object, list[object]]] = {
    "sparsity_version": (c_int, []),
    "sparsity_vector_bytes": (c_int, []),
    "sparsity_use_openmp": (None, [c_void_p, c_void_p, c_void_p]),
    "plan_new": (c_void_p, []),
    "plan_free": (None, [c_void_p]),
    "plan_buffer": (c_int, [c_void_p, c_size_t]),
    "plan_place": (None, [c_void_p, c_int, c_size_t]),
    "plan_conv2d": (c_int, [c_void_p, c_int, c_int, c_int, _INTS, c_void_p, c_void_p, *_AFFINE, c_int]),
    "plan_linear": (c_int, [c_void_p, *[c_int] * 6, c_void_p, c_void_p, *_AFFINE, c_int]),
    "plan_affine": (c_int, [c_void_p, c_int, c_int, c_int, c_long, *_AFFINE]),
    "plan_add": (c_int, [c_void_p, _INTS, c_int, c_int, c_long, c_float, c_int]),
    "plan_mean": (c_int, [c_void_p, c_int, c_int, c_int, c_long, *_AFFINE]),
    "plan_pool2d": (c_int, [c_void_p, c_int, c_int, _INTS, c_int, c_int, c_int, c_int]),
    "plan_activation": (c_int, [c_void_p, c_int, c_int, c_long, c_int]),
    "plan_multiply": (c_int, [c_void_p, c_int, c_int, c_int, c_long, c_int]),
    "plan_norm": (c_int, [c_void_p, *[c_int] * 4, c_void_p, c_void_p, c_float, c_int]),
    "plan_channel_norm": (c_int, [c_void_p, c_int, c_int, c_int, c_long, c_void_p, c_void_p, c_float]),
    "plan_transpose": (c_int, [c_void_p, c_int, c_int, c_long, c_long]),
    "plan_finish": (c_int, [c_void_p, _INTS, c_int, _INTS, c_int, c_size_t]),
    "plan_run": (c_int, [c_void_p, POINTER(c_void_p), POINTER(c_void_p), c_long, c_int, POINTER(c_double)]),
    "plan_step_weight": (None, [c_void_p, c_int, c_void_p]),
    "plan_step_bytes": (c_size_t, [c_void_p, c_int]),
    "plan_step_nonzeros": (c_size_t, [c_void_p, c_int]),
}


def library() -> ctypes.CDLL:
    """Return the kernels for the chosen instruction set, built first if need be.

    Raises:
        BuildError: they can be neither found nor built.
    """
    return _load(isa())


@functools.cache
def _load(instruction_set: str) -> ctypes.CDLL:
    path = library_path(instruction_set)
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(
            f"the built kernels {path} cannot be loaded: {error}; delete the file to build them anew"
        ) from error
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    if loaded.sparsity_version() != _VERSION:
        raise BuildError(
            f"{path} has version {loaded.sparsity_version()}, this package needs {_VERSION}; delete the file"
        )
    openmp = addresses()
    if openmp is not None:
        loaded.sparsity_use_openmp(*openmp)
    return loaded
