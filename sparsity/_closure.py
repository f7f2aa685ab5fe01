"""The closure among the arguments of ``optimizer.step``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Closure = Callable[[], Any]


def closure_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Closure | None:
    """Return the closure, or None if there is none; ``args`` begin with the optimizer."""
    return kwargs["closure"] if "closure" in kwargs else next(iter(args[1:2]), None)


def with_closure(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], closure: Closure
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with another closure in the place of the one there."""
    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure}
    return (args[0], closure, *args[2:]), dict(kwargs)
