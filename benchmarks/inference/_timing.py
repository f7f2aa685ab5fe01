"""Interleaved timing: rivals take turns, so that whatever slows the machine down slows all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from benchmarks.inference._engine import Runner
from benchmarks.inference._others import Watch

Key = TypeVar("Key", bound=Hashable)
TURN = 0.05  # seconds that a turn of fast calls lasts
MOST = 100  # calls in a turn
PAUSE = 0.02  # seconds after a turn, for threads that wait in a loop to give up
QUIET = 0.05  # share of the machine that other processes may take during a round
PATIENCE = 4


@dataclass
class Samples:
    """Wall times of one runner.

    Args:
        rounds: Seconds of each call, by turn.
        others: Share of the machine that other processes took during the rounds, on average.
    """

    rounds: list[list[float]] = field(default_factory=list)
    others: float = math.nan

    @property
    def seconds(self) -> list[float]:
        """Of all calls, sorted."""
        return sorted(second for turn in self.rounds for second in turn)

    def quantile(self, share: float) -> float:
        """Return the seconds that so large a share of all calls stays below, interpolated.

        Example:
            >>> Samples([[3.0, 1.0], [2.0]]).quantile(0.5)
            2.0
        """
        ordered = self.seconds
        position = share * (len(ordered) - 1)
        low = math.floor(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    def faster_than(self, other: Samples) -> float:
        """Return the median, over rounds, of the other's time over this one's: each time in the same few seconds.

        Example:
            >>> Samples([[1.0], [2.0], [1.0]]).faster_than(Samples([[2.0], [6.0], [2.0]]))
            2.0
        """
        return statistics.median(
            statistics.median(theirs) / statistics.median(ours)
            for ours, theirs in zip(self.rounds, other.rounds, strict=True)
        )


def interleave(
    runners: Mapping[Key, Runner], rounds: int, pids: Callable[[], Sequence[int]] = tuple
) -> dict[Key, Samples]:
    """Time all runners in turns, and keep the rounds during which the machine was least busy with other things.

    Rounds are repeated, up to `PATIENCE` times as many as wanted, until enough of them were quiet. Which are kept
    depends on other processes alone and not on any time that was measured.

    Args:
        runners: Ready to run, by name.
        rounds: Turns of each. A turn is two calls at least, as many as fit into `TURN` seconds otherwise; one more
            call before them is not counted. The order moves on by one each round.
        pids: From the processes that work for the runners, besides this one.
    """
    calls = {key: max(2, min(MOST, round(TURN / _guess(runner)))) for key, runner in runners.items()}
    taken: list[tuple[float, dict[Key, list[float]]]] = []
    while len(taken) < PATIENCE * rounds and sum(share <= QUIET for share, _ in taken) < rounds:
        watch = Watch(pids)
        with watch:
            times = _round(runners, calls, len(taken))
        # Where the system doesn't say how busy it is, every round counts as quiet.
        taken.append((0.0 if math.isnan(watch.share) else watch.share, times))
    kept = sorted(taken, key=lambda one: one[0])[:rounds]
    others = statistics.fmean(share for share, _ in kept)
    return {key: Samples([times[key] for _, times in kept], others) for key in runners}


def _round(runners: Mapping[Key, Runner], calls: Mapping[Key, int], number: int) -> dict[Key, list[float]]:
    keys = list(runners)
    first = number % len(keys)
    times = {}
    for key in keys[first:] + keys[:first]:
        times[key] = runners[key].time(calls[key])
        time.sleep(PAUSE)
    return times


def _guess(runner: Runner) -> float:
    return max(1e-6, statistics.median(runner.time(2)))
