"""Calls of a graph by the names of its inputs: what is missing or unknown is named, with the way out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from fxsplit._errors import InputError


class NamedInputs(fx.GraphModule):
    """A graph module whose calls say which arguments do not fit."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph."""
        return with_named_inputs(super().__call__, self.forward, args, kwargs)


def with_named_inputs(
    function: Callable[..., Any], forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Call ``function``, which takes the arguments of ``forward``.

    Raises:
        InputError: The arguments are not those that the model was traced with.
    """
    try:
        return function(*args, **kwargs)
    except TypeError as error:
        problem = _misfit(forward, args, kwargs)
        if problem is None:
            raise
        raise InputError(problem) from error


def _misfit(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    signature = inspect.signature(forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        names = list(signature.parameters)
    else:
        return None
    problems = []
    if len(args) > len(names):
        problems.append(f"got {len(args)} positional arguments")
    unknown = [name for name in kwargs if name not in names]
    if unknown:
        problems.append(f"it takes no {_listed(unknown)}")
    twice = [name for name in names[: len(args)] if name in kwargs]
    if twice:
        problems.append(f"got {_listed(twice)} twice")
    missing = [name for name in names[len(args) :] if name not in kwargs]
    if missing:
        problems.append(f"{_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    return (
        f"the model was traced with the inputs {_listed(names)}: {'; '.join(problems)}. A graph holds what the example "
        "made the model compute, so every call takes the same inputs: pass those, or trace the model again with an "
        "example that has others."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
