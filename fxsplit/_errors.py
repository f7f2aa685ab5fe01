"""Exceptions and warnings of fxsplit: each says what, where, got and expected, and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FxSplitError(Exception):
    """Base class of every error that fxsplit raises on purpose."""


class TraceError(FxSplitError, RuntimeError):
    """The model could not be recorded as a graph."""


class InputError(FxSplitError, ValueError):
    """An input of a traced or split model is not of the kind that was traced, so that its graph would be wrong."""


class CutError(FxSplitError, ValueError):
    """The requested split is not a legal cut of the graph."""


class SplitError(FxSplitError, ValueError):
    """An argument of the surgery (heads, vote, init, share, tied) or the state of the model is not acceptable."""


class SpecError(FxSplitError, ValueError):
    """A saved file and the model it should be loaded into do not belong together."""


class ExportError(FxSplitError, RuntimeError):
    """The model could not be exported, or the exported model disagrees with the original."""


class FxSplitWarning(UserWarning):
    """Base class of fxsplit's warnings."""


class NoEffectWarning(FxSplitWarning):
    """A call changed nothing."""


def near_matches(name: str, candidates: Iterable[str], limit: int = 3) -> str:
    """Return ``" Did you mean 'a', 'b'?"`` for the candidates closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(candidates), n=limit, cutoff=0.5)
    return f" Did you mean {', '.join(map(repr, close))}?" if close else ""
