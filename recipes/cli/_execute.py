"""Run one seed of a recipe: train its networks, join them, measure them once on the test part."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxsplit
from recipes.cli._folder import RESULT, Choice, claim
from recipes.cli._report import write_report
from recipes.evaluation import evaluate, perplexity, predict
from recipes.rows import Material, Recipe
from recipes.training import (
    DONE,
    Job,
    Log,
    Processes,
    Runtime,
    TensorBoard,
    WeightsAndBiases,
    costs,
    locked,
    read_json,
    read_tensors,
    train,
    write_json,
)

STATES = ("last", "best")


def execute(
    choice: Choice, seed: int, out: Path, runtime: Runtime, processes: Processes, *, resume: bool
) -> dict[str, Any]:
    """Run one seed to the end, or return the result of an earlier run.

    Args:
        choice: What to run.
        seed: Seed of training.
        out: Folder of all runs.
        runtime: How to carry it out.
        processes: Those that run it together.
        resume: Whether to go on with an unfinished run.

    Raises:
        TrainingError: The folder is in use, of another recipe, or unfinished without ``resume``.
        DataError: The data are not there.
    """
    folder, recipe = choice.folder(out, seed), choice.recipe
    with _alone(folder, processes):
        finished = processes.first and claim(folder, recipe, seed, resume=resume)
        if processes.agree(finished):
            return read_json(folder / RESULT)
        material = recipe.data.load(runtime.data_root)
        trained, kept = _train(choice, recipe, material, seed, folder, runtime, processes)
        if processes.first:
            _finish(choice, recipe, material, seed, folder, trained, kept, processes, runtime.workers)
        processes.wait()
    return read_json(folder / RESULT)


def _train(
    choice: Choice,
    recipe: Recipe,
    material: Material,
    seed: int,
    folder: Path,
    runtime: Runtime,
    processes: Processes,
) -> tuple[list[dict[str, Any]], dict[str, list[nn.Module]]]:
    """Train each network that isn't yet; return what is known of each, and the states that were kept as networks."""
    method, example = recipe.method, material.example
    make = maker(recipe, material)
    records, kept = [], {state: [] for state in STATES}
    for number in range(method.networks):
        job = job_of(choice, material, seed, number, folder, runtime, processes)
        net = method.network(make, example, first_seed(seed), number)
        # A pristine copy, on the CPU, to load what is kept into.
        blank = copy.deepcopy(net) if processes.first else net
        if not (job.folder / DONE).exists():
            logs = list(_extra_logs(job, recipe, choice, seed)) if processes.first else []
            try:
                train(net.to(processes.device), job, processes, logs)
            finally:
                for log in logs:
                    log.close()
        if processes.first:
            records.append(read_json(job.folder / DONE))
            for state in STATES:
                kept[state] += _kept(blank, job.folder, state)
    return records, kept


def job_of(
    choice: Choice,
    material: Material,
    seed: int,
    number: int,
    folder: Path,
    runtime: Runtime,
    processes: Processes,
) -> Job:
    """Return the training of one network of a run.

    Args:
        choice: What to run.
        material: Its data.
        seed: Seed of the run.
        number: Which of its networks.
        folder: Folder of the run.
        runtime: How to carry it out.
        processes: Those that run it together.
    """
    recipe, own = choice.recipe, first_seed(seed) + number
    validation = functools.partial(material.read, "validation", processes, runtime.workers)
    return Job(
        method=recipe.method,
        training=recipe.training,
        runtime=runtime,
        # Networks of an ensemble see the examples in different orders.
        feed=material.feed(recipe.training.batch_size, own, processes, runtime.workers),
        validation=validation if material.has_validation else None,
        folder=folder / f"network-{number}",
        seed=own,
        example=material.example,
        better=recipe.data.metric,
        title=f"{choice.row.name} seed {seed}, network {number + 1} of {recipe.method.networks}",
    )


def maker(recipe: Recipe, material: Material) -> Callable[[], nn.Module]:
    """Return the factory of the recipe's dense network for its data."""
    return lambda: recipe.model.make(material.outputs, material.channels)


def first_seed(seed: int) -> int:
    """Return the seed of a run's first network; its others have the next ones."""
    return 1000 * seed


def _extra_logs(job: Job, recipe: Recipe, choice: Choice, seed: int) -> Iterator[Log]:
    checkpoint = job.folder / "checkpoint.pt"
    step = read_tensors(checkpoint)["session"]["step"] if checkpoint.exists() else 0
    if job.runtime.tensorboard:
        yield TensorBoard(job.folder / "tensorboard", step)
    if job.runtime.wandb is not None:
        name = f"{choice.title} seed {seed} {job.folder.name}"
        yield WeightsAndBiases(job.runtime.wandb, name, recipe.as_dict(), job.folder, step)


def _kept(blank: nn.Module, folder: Path, state: str) -> list[nn.Module]:
    nets = []
    for file in sorted(folder.glob(f"{state}-*.pt"), key=lambda file: int(file.stem.rpartition("-")[2])):
        net = copy.deepcopy(blank)
        net.load_state_dict(read_tensors(file))
        nets.append(net)
    return nets


def _finish(
    choice: Choice,
    recipe: Recipe,
    material: Material,
    seed: int,
    folder: Path,
    trained: list[dict[str, Any]],
    kept: dict[str, list[nn.Module]],
    processes: Processes,
    workers: int,
) -> None:
    alone = Processes(0, 1, processes.device)
    metrics: dict[str, dict[str, float]] = {}
    found: Any = None
    for state in STATES:
        if not kept[state]:
            continue
        net = recipe.method.join(maker(recipe, material), material.example, kept[state])
        net.to(processes.device)
        metrics[state], measured = _measure(net, recipe, material, alone, workers)
        if found is None:
            held_out = material.has_validation and not recipe.language
            found = net, measured, predict(net, material.read("validation", alone, workers)) if held_out else None
        assert isinstance(net, fxsplit.SplitModel)
        fxsplit.save(net.cpu(), folder / f"{state}.safetensors")
    net, measured, validation = found
    cost = costs(net, material.example)
    dense = sum(record["training_flops_dense"] for record in trained)
    density = costs(kept["last"][0], material.example)["density"]
    result = {
        "row": choice.row.name,
        "label": choice.row.label,
        "preset": choice.preset,
        "changes": list(choice.changes),
        "seed": seed,
        "heads": recipe.method.heads,
        "networks": recipe.method.networks,
        "steps": [record["steps"] for record in trained],
        "best_steps": [record["best_steps"] for record in trained],
        "metrics": {state: _finite(values) for state, values in metrics.items()},
        "costs": cost,
        "training_flops": {
            "masks": sum(record["training_flops"] for record in trained),
            "uniform": dense * density,
            "dense": dense,
        },
        "seconds": sum(record["seconds"] for record in trained),
        "device": _device(processes),
        "processes": processes.world,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
    write_report(folder, choice, seed, result, measured, validation)
    write_json(folder / RESULT, result)
    for file in (*folder.glob("network-*/last-*.pt"), *folder.glob("network-*/best-*.pt")):
        file.unlink()  # the joined networks hold them


def _measure(
    net: nn.Module, recipe: Recipe, material: Material, alone: Processes, workers: int
) -> tuple[dict[str, float], Any]:
    if recipe.language:
        measured = perplexity(net, (x for x, _ in material.read("test", alone, workers)))
        return {
            "perplexity_prob": measured.prob,
            "perplexity_logit": measured.logit,
            "perplexity_head": sum(measured.heads) / len(measured.heads),
            "disagreement": measured.disagreement,
            "tokens": measured.tokens,
        }, measured
    predictions = predict(net, material.read("test", alone, workers))
    return evaluate(*predictions), predictions


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _device(processes: Processes) -> str:
    if processes.device.type == "cuda":
        return torch.cuda.get_device_name(processes.device)
    return processes.device.type


@contextlib.contextmanager
def _alone(folder: Path, processes: Processes) -> Iterator[None]:
    if not processes.first:
        yield
        return
    with locked(folder):
        yield
