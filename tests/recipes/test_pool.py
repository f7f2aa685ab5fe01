from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from recipes._pool import run_all


def double(job: int, tick: Callable[[int], object]) -> tuple[int, int]:
    """Work that reports its progress, and the number of threads it had."""
    tick(1)
    if job < 0:
        raise ValueError(f"job {job} cannot be done")
    return 2 * job, torch.get_num_threads()


def test_results_come_in_order_from_one_thread() -> None:
    threads = torch.get_num_threads()
    assert run_all(double, [3, 1, 2], workers=1, ticks=3, title="test") == [(6, 1), (2, 1), (4, 1)]
    assert torch.get_num_threads() == threads


def test_processes_give_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_all(double, [3, 1, 2], workers=2, ticks=3, title="test") == [(6, 1), (2, 1), (4, 1)]
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_reaches_the_caller(workers: int) -> None:
    with pytest.raises(ValueError, match="job -1 cannot be done"):
        run_all(double, [1, -1], workers=workers, ticks=2, title="test")
