"""What an engine is to the comparison."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks.inference._case import Case, first_tensor
from benchmarks.inference._clock import seconds_of


class Runner(Protocol):
    """A network made ready in an engine, for inputs that stay the same.

    Attributes:
        prepared: Seconds that it took to make it ready.
        coverage: Share of the operations that the engine runs itself, and not another one in its place.
    """

    prepared: float
    coverage: float

    def output(self) -> np.ndarray:
        """Run once and return the (first) output."""
        ...

    def time(self, runs: int) -> list[float]:
        """Return the wall time in seconds of each of so many consecutive runs, after one that isn't counted."""
        ...

    def close(self) -> None:
        """Give memory back."""
        ...


class Engine(Protocol):
    """Something that runs networks.

    Attributes:
        key: Its name in files and on the command line.
        label: Its name in tables.
        licence: Under which it may be used.
    """

    key: str
    label: str
    licence: str

    def version(self) -> str:
        """Return its version.

        Raises:
            EngineError: It can't run here; the message says why, and what would help.
        """
        ...

    def prepare(self, case: Case, threads: int) -> Runner:
        """Make a network ready for a number of threads, on the inputs of ``case``.

        Raises:
            EngineError: It can't run this network.
        """
        ...

    def pids(self) -> Sequence[int]:
        """Return the processes that work for it, besides this one."""
        ...

    def close(self) -> None:
        """End what it has started."""
        ...


@dataclass
class Local:
    """A network in this process.

    Args:
        call: Runs it on its inputs.
        threads: Number of threads that torch may use while it runs.
        prepared: Seconds that it took to make it ready.
        array: Turns what ``call`` returns into an array.
    """

    call: Callable[[], Any]
    threads: int
    prepared: float
    array: Callable[[Any], np.ndarray] = lambda output: first_tensor(output).numpy()
    coverage: float = 1.0

    def output(self) -> np.ndarray:
        """Run once and return the output."""
        torch.set_num_threads(self.threads)
        with torch.no_grad():
            return np.array(self.array(self.call()))

    def time(self, runs: int) -> list[float]:
        """Time consecutive runs."""
        torch.set_num_threads(self.threads)
        with torch.no_grad():
            return seconds_of(self.call, runs)

    def close(self) -> None:
        """Forget the network."""
        self.call = _closed


class InProcess:
    """Base of the engines that run in this process."""

    def pids(self) -> Sequence[int]:
        """No others."""
        return ()

    def close(self) -> None:
        """Nothing to end."""


def ready(make: Callable[[], Callable[[], Any]], threads: int, **options: Any) -> Local:
    """Make a runner of what ``make`` returns, and call it once, since engines put work off until then."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    call = make()
    with torch.no_grad():
        call()
    return Local(call, threads, time.perf_counter() - start, **options)


def _closed() -> None:
    raise RuntimeError("this network was closed")
