"""The demo's results page: which tables and figures it shows, and what is said about them."""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

import fxsplit
from recipes import _plots as plots
from recipes import _report as html
from recipes._budget import CONVENTION
from recipes._checks import Check
from recipes._run import Run
from recipes._settings import Settings
from recipes._tables import SPREAD_RULE, Row, table, verdicts
from recipes.data import Data, Examples
from recipes.evaluation import FEWEST, Looks, Series, calibration_bins, looks, mean_probability, reliability_diagram

LIBRARIES = ("torch", "timm", "torchmetrics", "scikit-learn", "onnxruntime", "numpy")


def conventions(settings: Settings, data: Data) -> list[str]:
    """Say exactly how the systems were trained and measured."""
    hyper = settings.hyper
    sizes = ", ".join(f"{len(part.y)} {name}" for name, part in _parts(data))
    return [
        CONVENTION.format(epochs=settings.epochs),
        f"Data: {data.name}, split once by class ({sizes}) and the same for all seeds, so the spread is the "
        "spread of training. Normalised with the training images alone. The training part is small on purpose, to "
        "leave the systems room to differ.",
        f"Training: SGD, Nesterov momentum {hyper.momentum:g}, learning rate {hyper.lr:g} on a cosine to 0, weight "
        f"decay {hyper.weight_decay:g}, batch size {hyper.batch_size}, images shifted by up to one pixel. The loss of "
        "several heads is the mean of their cross-entropies. The networks of the full ensemble are trained apart.",
        f"NeuroTrails: ERK densities, RigL every {settings.every} steps to the last, dropping "
        f"{settings.fraction:.0%} of the active weights at first and less and less along a cosine.",
        "Test: measured once, after the last epoch; nothing was selected on it. Accuracy, NLL (-log of the mean "
        "probability) and ECE (15 equal bins, L1, top-1) are of the mean of the heads' probabilities; results.csv has "
        "those of the mean logits too. Disagreement: share of test images on which two heads differ, over all pairs.",
        "FLOPs: 2 x multiply-accumulates of convolutions and linear layers for one image. 'uniform' multiplies "
        "by the overall density, as the paper's tables do; 'masks' counts the weights that are really active. "
        "Ratios are to the single dense network.",
        "Seconds: wall time of the training steps of a run, on one thread, beside other runs. Masked weights are "
        "computed like any other while training.",
        SPREAD_RULE,
    ]


def write_report(
    file: Path,
    settings: Settings,
    data: Data,
    runs: Sequence[Run],
    summary: Sequence[Row],
    results: Sequence[Check],
    net: nn.Module,
    seconds: float,
) -> None:
    """Write the page.

    Args:
        file: Where to.
        settings: Of the demo.
        data: The data set.
        runs: All runs.
        summary: Mean and spread per system.
        results: The checks of the saved network.
        net: The NeuroTrails network, loaded again.
        seconds: Wall time of the demo so far.
    """
    look = looks(row["label"] for row in summary)
    lead = (
        f"Four systems on {data.name}, {_count(settings.seeds, 'seed')} each, trained under one budget rule. "
        f"Computed in {seconds:.0f} s by python -m recipes demo on {platform.machine()}, {_processor()}."
    )
    sections = [
        html.Section("Results on the test set", html.data_table(*table(summary)) + html.bullets(verdicts(summary))),
        html.Section("Accuracy, cost and diversity", html.figures(_result_figures(runs, data.test.y, look))),
        html.Section("Training", html.figures(_training_figures(runs, look))),
        html.Section("The NeuroTrails network", _network(net, runs)),
        html.Section("Checks of the saved network", html.checks((c.name, c.passed, c.detail) for c in results)),
        html.Section("Conventions", html.bullets(conventions(settings, data))),
        html.Section("How to get this again", html.facts(_origin(settings, seconds))),
    ]
    title = "NeuroTrails on handwritten digits"
    file.write_text(html.page(title, lead, sections), encoding="utf-8")


def _result_figures(runs: Sequence[Run], labels: Tensor, look: Looks) -> list[tuple[str, str]]:
    by_label = _by_label(runs)
    trade_off = {
        label: (same[0].plan.cost.masked / 1e6, [run.metrics["accuracy_prob"] for run in same])
        for label, same in by_label.items()
    }
    bins = {
        label: calibration_bins(
            torch.cat([mean_probability(torch.from_numpy(run.logits)) for run in same]), labels.repeat(len(same))
        )
        for label, same in by_label.items()
    }
    diversity = {
        label: (
            [run.metrics["disagreement"] for run in same],
            [run.metrics["head_accuracy"] for run in same],
            [run.metrics["accuracy_prob"] for run in same],
        )
        for label, same in by_label.items()
        if same[0].plan.heads > 1
    }
    binned = f"Reliability diagram: test predictions of all seeds, bins with {FEWEST} or more of them."
    return [
        (plots.trade_off(trade_off, look), "Small dots are seeds; the bar is mean and standard deviation."),
        (reliability_diagram(bins, look).svg(), binned),
        (plots.diversity(diversity, look), "How much heads differ, and what voting makes of it."),
    ]


def _training_figures(runs: Sequence[Run], look: Looks) -> list[tuple[str, str]]:
    columns = (
        ("validation_accuracy", "validation accuracy", True, "Accuracy of the vote after each epoch, a line per seed."),
        ("validation_nll", "validation NLL", False, "NLL of the vote after each epoch."),
        ("train_loss", "training loss", False, "Mean cross-entropy of the heads on the augmented training images."),
    )
    drawings = []
    for key, title, percent, caption in columns:
        curves = {
            label: [
                ([row["training_flops_ratio"] for row in run.curves], [row[key] for row in run.curves]) for run in same
            ]
            for label, same in _by_label(runs).items()
        }
        drawings.append((plots.learning_curves(key, title, curves, look, shares=percent), caption))
    return drawings


def _network(net: nn.Module, runs: Sequence[Run]) -> str:
    run = next(run for run in runs if run.layers and run.key == "neurotrails")
    drawing = f'<div class="wide drawing">{fxsplit.draw(net).svg}</div>'
    drawings = [
        (plots.layer_densities(run.layers, run.plan.density), f"Density per layer (ERK), seed {run.seed}."),
        (plots.topology_updates(_updates(run)), f"Topology updates of trunk and heads, seed {run.seed}."),
    ]
    return drawing + html.figures(drawings)


def _updates(run: Run) -> dict[str, Series]:
    """Steps and counts per component; components that always changed as many weights share one line."""
    series: dict[str, dict[int, int]] = defaultdict(dict)
    for row in run.updates:
        series[row["component"]][row["step"]] = row["replaced"]
    alike: dict[tuple[tuple[int, int], ...], list[str]] = defaultdict(list)
    for component, counts in series.items():
        alike[tuple(counts.items())].append(component)
    return {
        ", ".join(components) + (" (each)" if len(components) > 1 else ""): (
            [step for step, _ in counts],
            [count for _, count in counts],
        )
        for counts, components in alike.items()
    }


def _by_label(runs: Sequence[Run]) -> dict[str, list[Run]]:
    grouped: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        grouped[run.label].append(run)
    return dict(grouped)


def _parts(data: Data) -> list[tuple[str, Examples]]:
    return [("training", data.train), ("validation", data.validation), ("test", data.test)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _processor() -> str:
    return f"{os.cpu_count()} cores, {platform.system()}"


def _origin(settings: Settings, seconds: float) -> list[tuple[str, str]]:
    shown = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name != "hyper"}
    return [
        ("seeds", ", ".join(map(str, range(settings.seeds)))),
        ("settings", ", ".join(f"{name}={value}" for name, value in shown.items())),
        ("versions", f"Python {platform.python_version()}, " + ", ".join(f"{n} {version(n)}" for n in LIBRARIES)),
        ("wall time", f"{seconds:.0f} s"),
    ]
