"""Arguments that the functions for ensembles have in common."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from fxsplit._errors import SplitError
from fxsplit._graph import require_traced
from fxsplit._trace import TracedModel, trace


def as_traced(model: nn.Module, example: Any) -> TracedModel:
    """The trace of a model: what `fxsplit.trace` made, or makes with ``example``.

    Raises:
        SplitError: ``model`` is no module, is split already, or is another graph module; or it is traced and there is
            an example all the same.
        TraceError: The model cannot be traced.
    """
    if not isinstance(model, nn.Module):
        raise SplitError(f"Expected a model or the trace of one, got {type(model).__name__}.")
    if not isinstance(model, fx.GraphModule):
        return trace(model, example)
    if example is not None:
        raise SplitError("The model is traced already, with its own example. Leave out example=.")
    return require_traced(model)  # type: ignore[return-value]


def check_members(members: object) -> None:
    """Reject numbers of members that make no sense.

    Raises:
        SplitError: ``members`` is no whole number of at least 1.
    """
    if isinstance(members, bool) or not isinstance(members, int) or members < 1:
        raise SplitError(f"members must be a whole number of at least 1, got {members!r}.")
