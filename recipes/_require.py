"""Checks of single settings."""

from __future__ import annotations

from collections.abc import Sequence

from recipes._errors import RecipeError


def require(holds: bool, name: str, range: str, value: object) -> None:
    """Refuse a setting that is out of its range.

    Args:
        holds: Whether the value is in the range; a comparison with NaN is false.
        name: Of the setting.
        range: What it must be, as in ``be at least 0``.
        value: What it is.

    Raises:
        RecipeError: The value is not in the range.

    Example:
        >>> require(0 <= 5 < 1, "momentum", "be at least 0 and below 1", 5)
        Traceback (most recent call last):
        recipes._errors.RecipeError: momentum must be at least 0 and below 1, got 5.
    """
    if not holds:
        raise RecipeError(f"{name} must {range}, got {value}.")


def are_numbers(values: Sequence[object]) -> bool:
    """Tell whether all are numbers: from the command line a tuple may hold anything.

    Example:
        >>> are_numbers((0.5, 1)), are_numbers((0.5, "a"))
        (True, False)
    """
    return all(isinstance(value, (int, float)) for value in values)
