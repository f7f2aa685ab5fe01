"""From runs to tables: rows of numbers, mean and spread over seeds, CSV files, and what the numbers say."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes._run import Run

Row = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """A measured column of the results.

    Args:
        key: Its name in CSV files.
        title: Its name in tables.
        show: Formats one number.
        best: `max`, `min`, or None where neither end is better.
    """

    key: str
    title: str
    show: Callable[[float], str]
    best: Callable[..., Any] | None = None


METRICS = (
    Metric("accuracy_prob", "accuracy %", lambda value: f"{100 * value:.2f}", max),
    Metric("nll_prob", "NLL", lambda value: f"{value:.4f}", min),
    Metric("ece_prob", "ECE %", lambda value: f"{100 * value:.2f}", min),
    Metric("disagreement", "disagree %", lambda value: f"{100 * value:.2f}"),
)


SPREAD_RULE = (
    "± is the standard deviation over seeds. Two systems count as within the seed spread of each other if their means "
    "differ by no more than the sum of their standard deviations."
)


def result_row(run: Run) -> Row:
    """Flatten a run into one row of `results.csv`."""
    plan = run.plan
    return {
        "system": run.key,
        "label": run.label,
        "seed": run.seed,
        "networks": plan.networks,
        "heads": plan.heads,
        "epochs": plan.epochs,
        "steps": plan.steps,
        **run.metrics,
        "parameters": plan.parameters,
        "parameters_nonzero": plan.kept,
        "inference_flops_dense": round(plan.cost.dense),
        "inference_flops_uniform": round(plan.cost.uniform),
        "inference_flops_masks": round(plan.cost.masked),
        "training_flops": round(plan.training_flops),
        "training_flops_ratio": plan.ratio,
        "seconds": run.seconds,
    }


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation (divisor n - 1); the latter is NaN for a single value.

    Example:
        >>> mean_std([1.0, 3.0])
        (2.0, 1.4142135623730951)
    """
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def summarise(rows: Sequence[Row]) -> list[Row]:
    """Return one row per system: `<column>_mean` and `<column>_std` of what varies with the seed, the rest as it is."""
    varying = [*_measured(rows), "seconds"]
    summary = []
    for system in dict.fromkeys(row["system"] for row in rows):
        of_system = [row for row in rows if row["system"] == system]
        merged: Row = {key: value for key, value in of_system[0].items() if key not in varying and key != "seed"}
        merged["seeds"] = len(of_system)
        for key in varying:
            merged[f"{key}_mean"], merged[f"{key}_std"] = mean_std([row[key] for row in of_system])
        summary.append(merged)
    return summary


def _measured(rows: Sequence[Row]) -> list[str]:
    keys = list(rows[0])
    return keys[keys.index("steps") + 1 : keys.index("parameters")]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with equal keys to a CSV file; numbers keep their full precision."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def plus_minus(row: Mapping[str, Any], metric: Metric) -> str:
    """Show mean and spread of a metric in a summary row; '-' where a system has no such number."""
    mean, std = row[f"{metric.key}_mean"], row[f"{metric.key}_std"]
    if math.isnan(mean):
        return "-"
    return metric.show(mean) if math.isnan(std) else f"{metric.show(mean)} ± {metric.show(std)}"


def table(summary: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Lay a summary out for reading: headers and cells. Ratios are to the first system."""
    reference = summary[0]["inference_flops_dense"]
    headers = [
        "system",
        *(metric.title for metric in METRICS),
        "params",
        "nonzero",
        "infer. FLOPs, uniform",
        "infer. FLOPs, masks",
        "epochs",
        "train FLOPs",
        "seconds",
    ]
    cells = [
        [
            row["label"],
            *(plus_minus(row, metric) for metric in METRICS),
            f"{row['parameters'] / 1e3:.1f}k",
            f"{row['parameters_nonzero'] / 1e3:.1f}k",
            f"{row['inference_flops_uniform'] / reference:.2f}x",
            f"{row['inference_flops_masks'] / reference:.2f}x",
            f"{row['networks']} x {row['epochs']}" if row["networks"] > 1 else f"{row['epochs']}",
            f"{row['training_flops_ratio']:.2f}x",
            f"{row['seconds_mean']:.1f}",
        ]
        for row in summary
    ]
    return headers, cells


def verdicts(summary: Sequence[Row]) -> list[str]:
    """Say for each ranked metric which system came out best, and which others the seeds cannot tell from it.

    Two systems are within the seed spread of each other if their means differ by no more than the sum of their
    standard deviations over seeds.
    """
    ranked = [(metric, metric.best) for metric in METRICS if metric.best is not None]
    return [_verdict(summary, metric, best) for metric, best in ranked]


def _verdict(summary: Sequence[Row], metric: Metric, best: Callable[..., Any]) -> str:
    mean, std = f"{metric.key}_mean", f"{metric.key}_std"
    winner = best(summary, key=lambda row: row[mean])
    others = [row for row in summary if row is not winner]
    said = f"{metric.title}: best {winner['label']} with {plus_minus(winner, metric)}"
    if math.isnan(winner[std]):
        return f"{said}. A single seed shows no spread, so this is no ranking."
    close = [row for row in others if abs(row[mean] - winner[mean]) <= row[std] + winner[std]]
    if not close:
        return f"{said}; every other system differs by more than the seed spread."
    return f"{said}; within the seed spread of it: {_names(close, metric)}."


def _names(rows: Iterable[Row], metric: Metric) -> str:
    return ", ".join(f"{row['label']} with {plus_minus(row, metric)}" for row in rows)
