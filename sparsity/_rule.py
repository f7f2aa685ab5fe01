"""What happens at an update and when: the part of an engine that tells the methods apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsity._errors import EngineError
from sparsity._rewire import Score
from sparsity._schedule import Schedule


@dataclass(frozen=True)
class Rule:
    """A method of dynamic sparse training.

    Attributes:
        every: Optimizer steps between updates.
        until: Step at which updates end, or None for never.
        fraction: Share of active weights to replace, a function of the step.
        drop: Score of the weights; the smallest are dropped.
        grow: Score of the weights; the largest are grown.
        dense: Whether a score needs the gradients of inactive weights.

    Raises:
        EngineError: ``every`` or ``until`` is not a positive int, or there would be no update before ``until``.
    """

    every: int
    until: int | None
    fraction: Schedule
    drop: Score
    grow: Score
    dense: bool = False

    def __post_init__(self) -> None:
        for name, value in (("every", self.every), ("until", self.until)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value <= 0):
                raise EngineError(f"{name} is a positive number of optimizer steps, got {value!r}.")
        if self.until is not None and self.until <= self.every:
            raise EngineError(
                f"The first update comes after every={self.every} steps, but updates end at until={self.until}, so "
                "there would be none. Lower every, raise until, or use sparsity.static."
            )

    def due(self, step: int) -> bool:
        """Tell whether optimizer step ``step``, counted from 0, makes an update; the very first step never does."""
        return step > 0 and step % self.every == 0 and (self.until is None or step < self.until)

    def share(self, step: int) -> float:
        """Return the fraction to replace at ``step``.

        Raises:
            EngineError: The schedule returned something else than a number in [0, 1].
        """
        fraction = self.fraction(step)
        if not 0 <= fraction <= 1:
            raise EngineError(
                f"The fraction to replace is in [0, 1], but the schedule gave {fraction!r} at step {step}."
            )
        return fraction

    def count(self, step: int, nonzeros: int, total: int) -> int:
        """Return how many of ``nonzeros`` active weights to drop, and so to grow, at ``step``."""
        # The small number keeps 0.29 * 100 from becoming 28.
        return min(math.floor(self.share(step) * nonzeros + 1e-9), total - nonzeros)
