"""Random numbers as pure functions of who asks: a run that resumes, or runs on more processes, draws the same ones."""

from __future__ import annotations

import numpy as np
from torch import Tensor

# The increment and the two multipliers of SplitMix64 (Steele, Lea and Flood 2014).
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def mix(*numbers: int) -> int:
    """Return a 63-bit seed that follows from all the numbers (each 0 or more), and looks random if any one changes.

    Example:
        >>> mix(0, 1) == mix(0, 1), mix(0, 1) == mix(1, 0)
        (True, False)
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def draws(key: int, indices: Tensor, columns: int) -> np.ndarray:
    """Draw a row of random 64-bit numbers for each example, `[B, columns]`; a row follows from key and index alone.

    Element `(i, c)` is number `i * columns + c` of the SplitMix64 sequence whose seed is the key, so any part of
    the sequence can be had without the rest.

    Args:
        key: Which sequence, say that of one epoch.
        indices: Indices of the examples, `[B]`, each 0 or more.
        columns: Numbers per example.

    Example:
        >>> import torch
        >>> several = draws(7, torch.tensor([5, 2]), columns=3)
        >>> bool((several[1] == draws(7, torch.tensor([2]), columns=3)[0]).all())
        True
    """
    rows = indices.cpu().numpy().astype(np.uint64)[:, None]
    # Unsigned 64-bit arrays wrap around, which is what the sequence is defined with.
    position = rows * np.uint64(columns) + np.arange(1, columns + 1, dtype=np.uint64)
    state = np.uint64(key) + position * _STEP
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))
