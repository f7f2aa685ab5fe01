"""The demo: handwritten digits, four systems on one budget, several seeds, a table and a page of results."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

import fxsplit
from fxsplit._table import text_table
from recipes._budget import Plan, plan
from recipes._checks import Check, exports, reloads
from recipes._demo_report import conventions, write_report
from recipes._errors import RecipeError
from recipes._models import digits_resnet
from recipes._pool import one_thread, run_all
from recipes._run import Run, execute
from recipes._settings import Settings, prepare_folder
from recipes._tables import Row, result_row, summarise, table, verdicts, write_csv
from recipes.data import Data, digits, steps_per_epoch
from recipes.methods import Method, full_ensemble, neurotrails, single_dense, treenet

SAVED = "neurotrails.safetensors"


@dataclass(frozen=True)
class Job:
    """One system with one seed; plain data, from which a worker process rebuilds everything else."""

    settings: Settings
    key: str
    seed: int
    plan: Plan


def methods(settings: Settings) -> dict[str, Method]:
    """The four systems the demo compares, the single dense network first."""
    systems = (
        single_dense(),
        full_ensemble(settings.heads),
        treenet(settings.split, settings.heads),
        neurotrails(settings.split, settings.heads, settings.sparsity, settings.every, settings.fraction),
    )
    return {method.key: method for method in systems}


def factory(settings: Settings) -> Callable[[], nn.Module]:
    """Factory of the dense network."""
    return lambda: digits_resnet(width=settings.width, blocks=settings.blocks)


def load_data(settings: Settings) -> Data:
    """The demo's data set."""
    return _digits(settings.train_share, settings.validation_share, settings.limit)


@lru_cache(maxsize=2)
def _digits(train: float, validation: float, limit: int | None) -> Data:
    return digits(train, validation, limit=limit)


def run_job(job: Job, tick: Callable[[int], object]) -> Run:
    """Train and measure one system with one seed."""
    settings = job.settings
    saved = job.key == "neurotrails" and job.seed == 0
    return execute(
        methods(settings)[job.key],
        job.seed,
        job.plan,
        factory(settings),
        load_data(settings),
        settings.hyper,
        on_epoch=lambda: tick(job.plan.heads // job.plan.networks),
        save_to=settings.out / SAVED if saved else None,
    )


def plan_all(settings: Settings) -> dict[str, Plan]:
    """Work out what each system costs before anything is trained.

    Raises:
        RecipeError: The budget ends before the first topology update.
    """
    data = load_data(settings)
    batch = min(settings.hyper.batch_size, len(data.train.y))
    steps = steps_per_epoch(len(data.train.y), batch)
    plans = {
        key: plan(method, factory(settings), data.example, settings.epochs, steps, batch)
        for key, method in methods(settings).items()
    }
    shortest = plans["neurotrails"].steps
    if shortest <= settings.every:
        raise RecipeError(
            f"NeuroTrails would train for {shortest} steps, but its first topology update comes after "
            f"{settings.every}. Train for more epochs than {settings.epochs}."
        )
    return plans


def train_all(settings: Settings, plans: dict[str, Plan]) -> list[Run]:
    """Train every system with every seed, and return the runs in the order of the systems."""
    jobs = [Job(settings, key, seed, plans[key]) for key in plans for seed in range(settings.seeds)]
    # The longest first, so that no worker is left alone with one at the end.
    jobs.sort(key=lambda job: job.plan.epochs * job.plan.heads, reverse=True)
    passes = sum(job.plan.epochs * job.plan.heads for job in jobs)
    runs = run_all(run_job, jobs, settings.workers, passes, "training")
    order = list(plans)
    return sorted(runs, key=lambda run: (order.index(run.key), run.seed))


@one_thread()
def demo(settings: Settings) -> bool:
    """Train, measure and compare the four systems, and write tables and the page.

    Returns:
        Whether every check of the saved network passed.

    Raises:
        RecipeError: A setting cannot work, or the folder cannot be written to.
    """
    started = time.perf_counter()
    prepare_folder(settings.out)
    data = load_data(settings)
    print_list(conventions(settings, data))
    plans = plan_all(settings)
    print_list(budget_lines(settings, plans), "Training FLOPs, relative to the single dense network:")

    runs = train_all(settings, plans)
    summary = write_tables(settings, runs)
    print("\n" + text_table(*table(summary)))
    print_list(verdicts(summary))

    net, results = check(settings, data, next(run for run in runs if run.key == "neurotrails"))
    print_list(map(str, results), "Checks of the trained NeuroTrails network:")
    seconds = time.perf_counter() - started
    write_report(settings.out / "report.html", settings, data, runs, summary, results, net, seconds)
    print(f"\n{seconds:.0f} s. The results are in {settings.out}; open {settings.out / 'report.html'}")
    return all(result.passed for result in results)


def print_list(lines: Iterable[str], title: str = "") -> None:
    """Print a title and one item per line, wrapped for a terminal."""
    print(f"\n{title}" if title else "")
    for line in lines:
        print(textwrap.fill(line, 110, initial_indent="  * ", subsequent_indent="    "))


def budget_lines(settings: Settings, plans: dict[str, Plan]) -> list[str]:
    """Say how long each system trains and what that costs."""
    labels = {key: method.label for key, method in methods(settings).items()}
    return [
        f"{labels[key]}: {planned.networks} x {planned.epochs} epochs ({planned.networks * planned.steps} steps), "
        f"{planned.ratio:.2f}x ({planned.training_flops:.2e})"
        for key, planned in plans.items()
    ]


def write_tables(settings: Settings, runs: list[Run]) -> list[Row]:
    """Write the CSV files and return the summary."""
    rows = [result_row(run) for run in runs]
    summary = summarise(rows)
    write_csv(settings.out / "results.csv", rows)
    write_csv(settings.out / "summary.csv", summary)
    write_csv(settings.out / "curves.csv", _rows_of(runs, "curves"))
    write_csv(settings.out / "topology.csv", _rows_of(runs, "updates"))
    return summary


def check(settings: Settings, data: Data, run: Run) -> tuple[fxsplit.SplitModel, list[Check]]:
    """Load the saved network into a fresh model, export it, and compare both with what was trained."""
    net, reloaded = reloads(settings.out / SAVED, factory(settings), data.test.x, torch.from_numpy(run.logits))
    return net, [reloaded, exports(net, settings.out / "neurotrails.onnx", data.test.x)]


def _rows_of(runs: list[Run], attribute: str) -> list[Row]:
    return [{"system": run.key, "seed": run.seed, **row} for run in runs for row in getattr(run, attribute)]
