"""When a checkpoint is due: the same answer in all processes, without a word between them at most steps."""

from __future__ import annotations

import time

from recipes.training._processes import Processes

# An agreement makes the host wait for the device, so it has to be rare. But a host that runs ahead of its device takes
# steps for faster than they are, so it has to come again after so many steps.
LONGEST = 100
PROMPT = 10.0
"""Seconds after which a signal is noticed at the latest; torchrun ends those that take 30."""


class CheckpointClock:
    """Decides by the clock of the first process.

    With each decision the first process tells after how many steps the others shall ask again: when half of the time
    that is left has passed, as fast as steps have been so far.

    Args:
        minutes: Minutes between checkpoints; 0 for one after each step.
        processes: Those that have to agree.
        step: Where training begins.
    """

    def __init__(self, minutes: float, processes: Processes, step: int) -> None:
        self._seconds, self._processes = 60 * minutes, processes
        self.saved(step)

    def saved(self, step: int) -> None:
        """Take note of a checkpoint; the next one is due so many minutes from now."""
        self._since, self._first, self._ask = time.monotonic(), step, step + 1

    def due(self, step: int, urgent: bool = False) -> bool:
        """Return whether a checkpoint is due after ``step`` steps; call it in all processes after each step.

        Args:
            step: Steps made.
            urgent: Whether this process wants one now, which counts in the first.
        """
        if step < self._ask and not (urgent and self._processes.world == 1):
            return False
        ahead = self._processes.tell(0 if urgent else self._ahead(step))
        self._ask = step + ahead
        return ahead == 0

    def _ahead(self, step: int) -> int:
        """Steps until the next decision; 0 if the checkpoint is due now."""
        passed = time.monotonic() - self._since
        if passed >= self._seconds:
            return 0
        pace = max(passed / (step - self._first), 1e-9)
        return max(1, min(LONGEST, int(min((self._seconds - passed) / 2, PROMPT) / pace)))
