"""Which part of a split model a weight belongs to, by its path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

Number = TypeVar("Number", int, float)

_COMPONENT = re.compile(r"trunk(?=\.)|heads\.\d+(?=\.)")


def component_of(path: str) -> str:
    """Return ``trunk`` or ``heads.<i>``; ``model`` for a path outside of them.

    Example:
        >>> component_of("heads.2.layer4.0.conv1.weight"), component_of("conv1.weight")
        ('heads.2', 'model')
    """
    found = _COMPONENT.match(path)
    return found.group() if found else "model"


def by_component(counts: Mapping[str, Number]) -> dict[str, Number]:
    """Add numbers by path up for ``trunk`` and each of ``heads.<i>``, and for ``model``: paths outside of them.

    Example:
        >>> by_component({"trunk.a.weight": 1, "trunk.b.weight": 2, "heads.0.fc.weight": 4})
        {'trunk': 3, 'heads.0': 4}
    """
    totals: dict[str, Number] = {}
    for path, count in counts.items():
        component = component_of(path)
        totals[component] = totals[component] + count if component in totals else count
    return totals
