"""Learning rates over training: each a pure function of the step, so that resuming needs no state of theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from recipes._errors import RecipeError
from recipes._require import are_numbers, require


class Schedule(Protocol):
    """What the learning rate is multiplied by."""

    def factor(self, step: int, steps: int) -> float:
        """Return the factor of optimizer step ``step``, from 0 to ``steps`` - 1."""
        ...


@dataclass(frozen=True)
class Constant:
    """The learning rate as it is."""

    def factor(self, step: int, steps: int) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class Steps:
    """Multiplied by ``by`` after each of some shares of the training.

    Args:
        drops: Shares of the training.
        by: What each multiplies the rate by.

    Raises:
        RecipeError: The shares don't rise between 0 and 1, or the factor is not positive.

    Example:
        >>> [round(Steps((0.25, 0.5, 0.75)).factor(step, 100), 4) for step in (24, 25, 50, 75)]
        [1.0, 0.1, 0.01, 0.001]
    """

    drops: tuple[float, ...] = (0.25, 0.5, 0.75)
    by: float = 0.1

    def __post_init__(self) -> None:
        rising = are_numbers(self.drops) and all(before < after for before, after in pairwise((0, *self.drops, 1)))
        require(rising, "drops", "be rising shares of the training, between 0 and 1", self.drops)
        require(0 < self.by < math.inf, "by", "be positive", self.by)

    def factor(self, step: int, steps: int) -> float:
        """Return ``by`` to the power of the drops so far."""
        return self.by ** sum(step >= _at(drop, steps) for drop in self.drops)


@dataclass(frozen=True)
class WarmSteps(Steps):
    """A linear rise from nothing, then as `Steps`.

    Args:
        drops: Shares of the training.
        by: What each multiplies the rate by.
        warmup: Share of the training for the rise.

    Example:
        >>> [round(WarmSteps((0.5,), warmup=0.04).factor(step, 100), 4) for step in (0, 1, 3, 4, 50)]
        [0.25, 0.5, 1.0, 1.0, 0.1]
    """

    warmup: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        """Return the factor of ``step``; the rise reaches 1 with its last step."""
        rise = _at(self.warmup, steps)
        return (step + 1) / rise if step < rise else super().factor(step, steps)


@dataclass(frozen=True)
class Piecewise:
    """Constant pieces.

    Args:
        pieces: Share of the training at which each ends, and the factor until then; the last one ends at 1.

    Example:
        >>> Piecewise(((0.5, 1.0), (1.0, 0.1))).factor(60, 100)
        0.1
    """

    pieces: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        usable = all(isinstance(piece, tuple) and len(piece) == 2 and are_numbers(piece) for piece in self.pieces)
        require(usable, "pieces", "be pairs of a share of the training and a factor", self.pieces)
        ends = [end for end, _ in self.pieces]
        if ends != sorted(ends) or not ends or ends[-1] != 1:
            raise RecipeError(f"pieces must end at rising shares of the training, the last one at 1; got {ends}.")

    def factor(self, step: int, steps: int) -> float:
        """Return the factor of the piece that ``step`` is in."""
        return next(factor for end, factor in self.pieces if step < _at(end, steps) or end == 1)


@dataclass(frozen=True)
class Cosine:
    """A linear rise from nothing, then a cosine down to a floor.

    Args:
        floor: Factor at the end.
        warmup: Share of the training for the rise.

    Raises:
        RecipeError: A setting is out of its range.

    Example:
        >>> [round(Cosine(floor=0.1, warmup=0.1).factor(step, 100), 4) for step in (0, 9, 10, 55)]
        [0.1, 1.0, 1.0, 0.55]
    """

    floor: float = 0.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.floor < math.inf, "floor", "be at least 0", self.floor)
        require(0 <= self.warmup <= 1, "warmup", "lie in [0, 1]", self.warmup)

    def factor(self, step: int, steps: int) -> float:
        """Return the factor of ``step``; the rise reaches 1 with its last step."""
        rise = _at(self.warmup, steps)
        if step < rise:
            return (step + 1) / rise
        progress = (step - rise) / max(1, steps - rise)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class FlatLinear:
    """Flat, then linear to a floor, then flat: the schedule of Network Fission Ensembles and SWA.

    Args:
        begin: Share of the training at which the fall begins.
        end: Share at which it ends.
        floor: Factor from there on.

    Raises:
        RecipeError: A setting is out of its range, or the fall ends before it begins.

    Example:
        >>> [round(FlatLinear().factor(step, 100), 3) for step in (50, 70, 90)]
        [1.0, 0.505, 0.01]
    """

    begin: float = 0.5
    end: float = 0.9
    floor: float = 0.01

    def __post_init__(self) -> None:
        require(0 <= self.floor < math.inf, "floor", "be at least 0", self.floor)
        require(0 <= self.begin < self.end, "begin", f"be at least 0 and below end={self.end}", self.begin)

    def factor(self, step: int, steps: int) -> float:
        """Return the factor of ``step``."""
        fallen = min(max((step / steps - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return 1 - (1 - self.floor) * fallen


def _at(share: float, steps: int) -> int:
    return round(share * steps)
