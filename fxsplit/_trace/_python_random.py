"""Watches the random generators of Python and numpy, whose numbers a graph could only hold as constants."""

from __future__ import annotations

import random
from typing import Any

import numpy as np


class PythonRandomWatch:
    """Tells whether numbers were drawn from ``random`` or ``numpy.random`` since the last question."""

    def __init__(self) -> None:
        self._state = self._read()

    def moved(self) -> bool:
        """Whether a generator is in another state than at the last call."""
        before, self._state = self._state, self._read()
        return before != self._state

    def _read(self) -> tuple[Any, ...]:
        state: Any = np.random.get_state()  # noqa: NPY002 - models draw from the global one
        return random.getstate(), state[1].tobytes(), *state[2:]
