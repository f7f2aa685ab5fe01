"""Runs many models in several processes, keeps what is done in a file, and goes on where it stopped."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.coverage._measure import Plan, Row, row_of, row_of_failure
from benchmarks.coverage._zoos import entries
from tests.zoo.catalogue.entry import Entry

Job = tuple[str, str, Plan]
Measure = Callable[[Job, int], Row]
_MODELS_PER_PROCESS = 25


def read(path: Path) -> list[Row]:
    """What was measured so far; a line that was cut off while it was written is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def run(jobs: Sequence[Job], path: Path, workers: int, limit: int, measure: Measure | None = None) -> list[Row]:
    """Measure the jobs that are not in ``path`` yet, append each to it, and return all rows.

    Args:
        jobs: Zoo, name and plan.
        path: A file of one JSON object per line.
        workers: Processes, of one thread each. Where one dies, all that it interrupts runs again, alone.
        limit: Seconds for one model.
        measure: Makes the row of a job, in its process; by default that of the model which the job names.
    """
    done = {(row["zoo"], row["name"], row["real"]) for row in read(path)}
    todo = [job for job in jobs if (job[0], job[1], job[2].real) not in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.write_text("".join(json.dumps(row) + "\n" for row in read(path)))  # without a line that was cut off
    with path.open("a") as file, tqdm(total=len(jobs), initial=len(jobs) - len(todo), unit="model") as bar:
        for job, row in _results(todo, workers, limit, measure or _measure):
            file.write(json.dumps(row) + "\n")
            file.flush()
            bar.set_postfix_str(job[1][:30])
            bar.update()
    return read(path)


def _results(todo: Sequence[Job], workers: int, limit: int, measure: Measure) -> Iterator[tuple[Job, Row]]:
    share = _MODELS_PER_PROCESS * workers
    for start in range(0, len(todo), share):
        interrupted: list[Job] = []
        for job, row in _in_one_pool(todo[start : start + share], workers, limit, measure):
            if row is None:
                interrupted.append(job)
            else:
                yield job, row
        # A process that dies breaks its whole pool; only what dies by itself has failed.
        for job in interrupted:
            for _, row in _in_one_pool([job], 1, limit, measure):
                yield job, row or _failed(job, "its process died (memory?)")


def _in_one_pool(jobs: Sequence[Job], workers: int, limit: int, measure: Measure) -> Iterator[tuple[Job, Row | None]]:
    """The rows of jobs, None for those that were not done when a process died."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start) as pool:
        futures = {pool.submit(measure, job, limit): job for job in jobs}
        for future in as_completed(futures):
            died = isinstance(future.exception(), BrokenProcessPool)
            yield futures[future], None if died else future.result()


def _start() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)


class _OutOfTime(BaseException):
    """Not an Exception, so that nothing on the way mistakes it for a failure of the model."""


def _measure(job: Job, limit: int) -> Row:
    def stop(signum: int, frame: object) -> None:
        raise _OutOfTime

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        return row_of(_entry(job[0], job[1]), job[2])
    except _OutOfTime:
        return _failed(job, f"not done after {limit} s")
    except Exception as error:
        return _failed(job, f"{type(error).__name__}: {error}")
    finally:
        signal.alarm(0)
        gc.collect()


def _entry(zoo: str, name: str) -> Entry:
    return next(entry for entry in entries(zoo) if entry.name == name)


def _failed(job: Job, why: str) -> Row:
    return row_of_failure(_entry(job[0], job[1]), job[2], why)
