"""Tracing beside other threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fxsplit._errors import TraceError
from fxsplit._trace import trace
from tests.checks import assert_same


class Waits(nn.Module):
    """Lets other threads come first."""

    def __init__(self, wait: Callable[[], Any]) -> None:
        super().__init__()
        self.lin, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.wait = wait

    def forward(self, x: Tensor) -> Tensor:
        x = self.lin(x).relu()
        self.wait()
        return self.last(x)


def in_threads(*jobs: Callable[[], Any]) -> list[Any]:
    """Results, or exceptions, of jobs that all run at once."""
    results: list[Any] = [None] * len(jobs)

    def work(index: int) -> None:
        try:
            results[index] = jobs[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_threads_that_trace_at_once_take_turns() -> None:
    call = nn.Module.__call__
    pause = threading.Event()
    nets = [Waits(lambda: pause.wait(0.005)) for _ in range(3)]
    traces = in_threads(*[lambda net=net: trace(net, torch.zeros(2, 4)) for net in nets])
    for traced in traces:
        assert [node.target for node in traced.graph.nodes] == ["x", "lin", "relu", "last", "output"]
        assert not traced.report.warnings
    assert nn.Module.__call__ is call


def test_a_model_that_another_thread_runs_is_not_recorded() -> None:
    recording, ran = threading.Event(), threading.Event()
    other = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    outputs: list[Tensor] = []

    def run_other() -> None:
        recording.wait(60)
        outputs.append(other(torch.ones(1, 4)))
        ran.set()

    def wait() -> None:
        recording.set()
        ran.wait(60)

    _, traced = in_threads(run_other, lambda: trace(Waits(wait), torch.zeros(2, 4)))
    assert [node.target for node in traced.graph.nodes] == ["x", "lin", "relu", "last", "output"]
    assert_same(outputs[0], other(torch.ones(1, 4)))


def test_a_failed_trace_lets_the_next_thread_in() -> None:
    failed, traced = in_threads(
        lambda: trace(nn.Linear(4, 4), torch.zeros(2, 3)), lambda: trace(nn.Linear(4, 4), torch.zeros(2, 4))
    )
    assert isinstance(failed, TraceError)
    assert traced(torch.zeros(3, 4)).shape == (3, 4)
