"""How busy the machine is with other things, which no engine should pay for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_STAT = Path("/proc/stat")


class Watch:
    """Measures which share of the machine's CPU time other processes take while a block runs.

    Args:
        pids: From the processes to count as ours besides this one.

    Attributes:
        share: From 0 to 1, after the block; NaN where the system doesn't say. Its clock ticks every 10 ms.
    """

    def __init__(self, pids: Callable[[], Sequence[int]]) -> None:
        self._pids = pids
        self.share = float("nan")

    def __enter__(self) -> None:
        self._start = time.perf_counter(), _busy(), _own(self._pids())

    def __exit__(self, *exception: object) -> None:
        start, busy, own = self._start
        elapsed = time.perf_counter() - start
        foreign = (_busy() - busy) - (_own(self._pids()) - own)
        if _STAT.exists():
            self.share = min(1.0, max(0.0, foreign / elapsed / (os.cpu_count() or 1)))


def _busy() -> float:
    """CPU seconds of all processes, and those that other virtual machines took."""
    if not _STAT.exists():
        return 0.0
    user, nice, system, _idle, _wait, irq, softirq, steal, *_ = map(
        int, _STAT.read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own(pids: Sequence[int]) -> float:
    seconds = time.process_time()
    for pid in pids:
        path = Path(f"/proc/{pid}/stat")
        if path.exists():
            fields = path.read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds
