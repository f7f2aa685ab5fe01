"""Numbers of one run that were measured at several times, together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEANS = {"corruption": "mean", "tasks": "average"}
"""Groups of measures with a mean of them, and what it is called there."""


def merged(earlier: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return earlier numbers with new ones: what was measured again is replaced, and means are those of all.

    Args:
        earlier: Content of ``metrics.json``.
        new: Numbers that were measured now.

    Example:
        >>> merged({"tasks": {"piqa": 0.5, "average": 0.5}}, {"tasks": {"boolq": 0.7, "average": 0.7}})
        {'tasks': {'piqa': 0.5, 'boolq': 0.7, 'average': 0.6}}
    """
    together = _together(earlier, new)
    for group, name in MEANS.items():
        if group in earlier and group in new:
            measures = {key: value for key, value in together[group].items() if key != name}
            mean = _mean(list(measures.values()))
            together[group] = measures if mean in (None, {}) else {**measures, name: mean}
    return together


def _together(earlier: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(earlier)
    for key, value in new.items():
        old = both.get(key)
        both[key] = _together(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def _mean(values: list[Any]) -> Any:
    """The mean of numbers; of dictionaries, of each key that all of them have."""
    if all(isinstance(value, Mapping) for value in values):
        keys = [key for key in values[0] if all(key in value for value in values)]
        return {key: _mean([value[key] for value in values]) for key in keys}
    # A number that was not finite is null in the file.
    return None if None in values else sum(values) / len(values)
