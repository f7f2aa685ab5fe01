"""How the share of weights that an update replaces changes over training: plain functions of the step."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable

from sparsity._errors import EngineError

Schedule = Callable[[int], float]


def constant(fraction: float) -> Schedule:
    """Return a schedule that always gives ``fraction``."""
    return lambda step: fraction


def cosine(fraction: float, until: int, floor: float = 0.0) -> Schedule:
    """Return f(t) = floor + (fraction - floor) / 2 (1 + cos(pi t / until)), ``floor`` from ``until`` on.

    With a floor of zero this is the schedule of Evci et al. 2020, sec. 3.

    Example:
        >>> [round(cosine(0.3, until=100)(step), 3) for step in (0, 50, 100)]
        [0.3, 0.15, 0.0]

    Raises:
        EngineError: ``until`` is not a positive number of steps.
    """
    if isinstance(until, bool) or not isinstance(until, numbers.Real) or until <= 0:
        raise EngineError(f"until is a number of optimizer steps of at least 1, got {until!r}.")
    return lambda step: floor + (fraction - floor) / 2 * (1 + math.cos(math.pi * min(step / until, 1)))


def is_due(step: int, every: int, until: int | None = None, begin: int = 0) -> bool:
    """Tell whether optimizer step ``step``, counted from 0, makes an update; the very first step never does."""
    return step > 0 and step >= begin and (step - begin) % every == 0 and (until is None or step < until)


def check_steps(name: str, value: object, least: int) -> None:
    """Check that ``value`` is a number of optimizer steps.

    Raises:
        EngineError: It is not an int of at least ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise EngineError(f"{name} is a number of optimizer steps of at least {least}, got {value!r}.")


def schedule(fraction: float | Schedule, until: int | None) -> Schedule:
    """Return ``fraction`` as a schedule: itself if callable, else cosine to ``until``, or constant without an end.

    Raises:
        EngineError: ``fraction`` is neither a number in (0, 1] nor a callable.
    """
    if callable(fraction):
        return fraction
    if isinstance(fraction, bool) or not isinstance(fraction, numbers.Real) or not 0 < fraction <= 1:
        raise EngineError(
            "fraction is the share of active weights that the first update replaces, a number in (0, 1] or a function "
            f"of the step, got {fraction!r}."
        )
    return constant(float(fraction)) if until is None else cosine(float(fraction), until)
