"""Timing in turns: every runner's share, which rounds count, and what other processes take."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from benchmarks.inference import _timing
from benchmarks.inference._clock import seconds_of
from benchmarks.inference._others import Watch
from benchmarks.inference._timing import Samples, interleave


@dataclass
class Scripted:
    """A runner whose n-th turn takes n seconds per call, without waiting for them."""

    name: str
    log: list[str]
    turns: int = 0
    calls: list[int] = field(default_factory=list)
    prepared: float = 0.0
    coverage: float = 1.0

    def output(self) -> np.ndarray:
        raise NotImplementedError

    def time(self, runs: int) -> list[float]:
        self.log.append(self.name)
        self.calls.append(runs)
        self.turns += 1
        return [float(self.turns)] * runs

    def close(self) -> None:
        raise NotImplementedError


class Noisy(Watch):
    """Says that the machine is as busy as the script has it."""

    script: Iterator[float]

    def __exit__(self, *exception: object) -> None:
        self.share = next(self.script)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_timing, "PAUSE", 0.0)


def _noise(monkeypatch: pytest.MonkeyPatch, *shares: float) -> None:
    Noisy.script = iter(shares)
    monkeypatch.setattr(_timing, "Watch", Noisy)


def test_runners_take_turns_and_the_first_place_goes_round(monkeypatch: pytest.MonkeyPatch) -> None:
    _noise(monkeypatch, 0.0, 0.0, 0.0)
    log: list[str] = []
    interleave({name: Scripted(name, log) for name in "abc"}, 3)
    assert "".join(log) == "abc" + "abc" + "bca" + "cab"  # once to see how long a call takes


def test_slow_calls_are_made_twice_a_turn_and_fast_ones_fill_it() -> None:
    class Fast(Scripted):
        def time(self, runs: int) -> list[float]:
            return [0.001 for _ in super().time(runs)]

    slow, fast = Scripted("slow", []), Fast("fast", [])
    samples = interleave({"slow": slow, "fast": fast}, 2)
    assert {len(turn) for turn in samples["slow"].rounds} == {2}
    assert {len(turn) for turn in samples["fast"].rounds} == {50}


def test_noisy_rounds_are_repeated_for_all_runners(monkeypatch: pytest.MonkeyPatch) -> None:
    _noise(monkeypatch, 0.9, 0.01, 0.5, 0.03)
    samples = interleave({name: Scripted(name, []) for name in "ab"}, 2)
    # Turn 1 was the guess, so that rounds are turns 2, 3, 4, 5: the second and fourth of them were quiet.
    assert samples["a"].rounds == samples["b"].rounds == [[3.0, 3.0], [5.0, 5.0]]
    assert samples["a"].others == pytest.approx(0.02)


def test_patience_ends_with_the_quietest_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    _noise(monkeypatch, 0.9, 0.8, 0.4, 0.7, 0.6, 0.5, 0.9, 0.9)
    samples = interleave({"a": Scripted("a", [])}, 2)
    assert samples["a"].rounds == [[4.0, 4.0], [7.0, 7.0]]
    assert samples["a"].others == pytest.approx(0.45)


def test_a_system_that_does_not_say_how_busy_it_is_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _noise(monkeypatch, float("nan"), float("nan"))
    assert len(interleave({"a": Scripted("a", [])}, 2)["a"].rounds) == 2


def test_quantiles() -> None:
    samples = Samples([[4.0, 1.0], [3.0, 2.0]])
    assert [samples.quantile(share) for share in (0.0, 0.25, 0.5, 1.0)] == [1.0, 1.75, 2.5, 4.0]
    assert Samples([[5.0]]).quantile(0.75) == 5.0


def test_the_first_call_of_a_turn_is_not_timed() -> None:
    waits = iter([0.05, 0.0, 0.0])
    assert max(seconds_of(lambda: time.sleep(next(waits)), 2)) < 0.05
    with pytest.raises(StopIteration):
        next(waits)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_of_ours_is_not_counted_as_another() -> None:
    code = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    with subprocess.Popen(
        [sys.executable, "-c", code + "\nimport sys; sys.stdin.read()"], stdin=subprocess.PIPE
    ) as busy:
        ours, others = Watch(lambda: [busy.pid]), Watch(list)
        with others, ours:
            time.sleep(1.0)
        busy.communicate()
    assert others.share > ours.share
