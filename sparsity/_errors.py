"""Exceptions and warnings of sparsity: each says what, where, got and expected, and how to fix it."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable


class SparsityError(Exception):
    """Base class of every error that sparsity raises on purpose."""


class AllocationError(SparsityError, ValueError):
    """The requested sparsity or its distribution over the layers cannot be met."""


class MaskError(SparsityError, ValueError):
    """The model cannot carry the requested masks, or does not carry the masks that a call needs."""


class EngineError(SparsityError, ValueError):
    """An engine cannot be attached to this model and optimizer, or cannot go on."""


class RecordError(SparsityError, ValueError):
    """A record of training cannot be made, read or gone on with from what was given."""


class CompileError(SparsityError, ValueError):
    """A network cannot be compiled for sparse inference, or a compiled one cannot do what it was asked."""


class BuildError(SparsityError, RuntimeError):
    """The kernels of the sparse runtime can be neither found nor built."""


class PlanError(SparsityError, ValueError):
    """A plan of the sparse runtime was given steps, buffers or tensors that do not fit together."""


class SparsityWarning(UserWarning):
    """Base class of sparsity's warnings."""


class NoEffectWarning(SparsityWarning):
    """A call changed nothing."""


def near_matches(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'a' or 'b'?"`` for the known names closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def described(value: object) -> str:
    """Return a number, a string or a name as it is, and of anything else the name or type: it may be large."""
    if value is None or isinstance(value, (numbers.Number, str)):
        return repr(value)
    return getattr(value, "__qualname__", f"one of type {type(value).__name__}")


def listed(names: Iterable[str], limit: int = 5) -> str:
    """Return the names quoted and comma-separated, at most ``limit`` of them followed by a count of the rest."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + rest
