"""CPU time of single calls on one thread, which other processes on the machine hardly change."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch

_CACHE_FLOATS = 16 << 20


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds(calls: list[Callable[[], object]], budget: float, rounds: int = 7, cold: bool = False) -> list[float]:
    """CPU seconds of each call, in turns so that all see the same machine; the lower quartile of the rounds.

    Args:
        calls: What to time; each is called once before.
        budget: Seconds after which no further round is started.
        rounds: Most rounds.
        cold: Whether to fill the caches with something else before each call, as the rest of a network does.
    """
    other = torch.zeros(_CACHE_FLOATS if cold else 0)
    for call in calls:
        call()
    taken: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    for _ in range(rounds):
        for call, times in zip(calls, taken, strict=True):
            other.add_(1)
            before = time.thread_time()
            call()
            times.append(time.thread_time() - before)
        if time.perf_counter() - start > budget:
            break
    return [sorted(times)[len(times) // 4] for times in taken]
