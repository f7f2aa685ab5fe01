"""Values of settings as text, written as short as the command line takes them."""

from __future__ import annotations

from typing import Any


def plain(value: Any) -> str:
    """Return a value as text; a text alone without quotes.

    Example:
        >>> plain((0.5, 1.0)), plain(None), plain(0.05), plain("bf16"), plain(("fc",))
        ('(.5,1)', 'None', '.05', 'bf16', "('fc',)")
    """
    if isinstance(value, tuple):
        inner = ",".join(repr(each) if isinstance(each, str) else plain(each) for each in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else _short(repr(value))
    return str(value)


def _short(number: str) -> str:
    return number.replace("0.", ".", 1) if number.startswith(("0.", "-0.")) else number
