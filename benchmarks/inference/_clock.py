"""Wall time of consecutive calls."""

from __future__ import annotations

import time
from collections.abc import Callable


def seconds_of(call: Callable[[], object], runs: int) -> list[float]:
    """Call ``runs + 1`` times and return the wall time in seconds of each call but the first.

    The first call finds its weights outside the caches, where another engine's turn has left them.
    """
    call()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds
