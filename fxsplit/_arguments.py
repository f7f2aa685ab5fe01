"""Calls of a graph by the names of its inputs: constants of the trace may be given, what does not fit is named."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxsplit._errors import InputError

CALL_KEY = "call"
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class TracedArgument:
    """An argument of the example: an input, or a constant with its value in a tuple; given by keyword, or by place."""

    name: str
    constant: tuple[Any] | None
    keyword: bool


class NamedInputs(fx.GraphModule):
    """A graph module whose calls may repeat the constants of its trace, and say which arguments do not fit.

    ``meta['call']`` lists the arguments that were traced, in order.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph."""
        return self.with_named_inputs(super().__call__, args, kwargs)

    def with_named_inputs(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call ``function``, which takes the inputs of the graph.

        Raises:
            InputError: The arguments are not those that the model was traced with.
        """
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            problem = _misfit(self.forward, args, kwargs)
            if problem is None:
                raise
            inputs = _without_constants(self.meta.get(CALL_KEY, ()), args, kwargs)
            if inputs is None or _misfit(self.forward, (), inputs) is not None:
                raise InputError(problem) from error
        return function(**inputs)


def _without_constants(
    traced: Sequence[TracedArgument], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Inputs by name, for arguments as the original model takes them; None if their names are not those traced."""
    # The place of what was given by keyword is not known, but inputs have one in the graph.
    by_place = [argument.name for argument in traced if not argument.keyword]
    names = by_place if len(args) <= len(by_place) else [a.name for a in traced if a.constant is None]
    given = dict(zip(names, args, strict=False))
    if len(args) > len(names) or given.keys() & kwargs.keys():
        return None
    given |= kwargs
    for argument in traced:
        if argument.constant is None or argument.name not in given:
            continue
        name, (value,) = argument.name, argument.constant
        got = given.pop(name)
        if got is not value and not (isinstance(value, _PLAIN) and type(got) is type(value) and got == value):
            raise InputError(
                f"argument {name!r} is {value!r} in the graph, as in the example; got {got!r}. Leave it out, or trace "
                "the model again with an example that has this value."
            )
    return given


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
