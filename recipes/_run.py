"""One run: one system trained with one seed, and everything a report needs to know about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fxsplit
import sparsity
from recipes._budget import Plan
from recipes._settings import Hyper
from recipes._train import History, train
from recipes.data import Data, shift_by_one
from recipes.evaluation import diversity, evaluate, head_logits, headline, mean_probability
from recipes.methods import MakeNet, Method

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The record of one run: plain data, so that it can come from another process.

    Args:
        key: Key of the method.
        label: Label of the method.
        seed: Training seed.
        plan: Epochs and FLOPs.
        metrics: Of the test set, see `headline`.
        seconds: Wall time of the training steps.
        logits: Test logits of the heads, `[M, N, K]`.
        curves: One row per epoch, measured on the validation set.
        updates: One row per topology update and component: how many weights it dropped, and as many grew.
        layers: Path and density of each masked weight after training.
    """

    key: str
    label: str
    seed: int
    plan: Plan
    metrics: Mapping[str, float]
    seconds: float
    logits: np.ndarray
    curves: list[Row]
    updates: list[Row]
    layers: list[tuple[str, float]]


def execute(
    method: Method,
    seed: int,
    plan: Plan,
    make: MakeNet,
    data: Data,
    hyper: Hyper,
    *,
    on_epoch: Callable[[], object] = lambda: None,
    save_to: Path | None = None,
) -> Run:
    """Build a system, train its networks one by one, and measure it once on the test set.

    Args:
        method: The system.
        seed: Training seed.
        plan: How long to train.
        make: Factory of the dense network.
        data: Data set.
        hyper: Optimizer settings.
        on_epoch: Called after each epoch of each network.
        save_to: File for the trained network; only for a system of a single split model.
    """
    # Networks of one run use seeds up to the number of heads above this one.
    first = 1000 * seed
    networks = method.build(make, data.example, first)
    histories = [
        train(
            net,
            data,
            hyper,
            plan.epochs,
            first + number,
            augment=shift_by_one(data.background),
            attach=lambda net, optimizer, steps, heard: method.attach(net, optimizer, steps, [heard], seed=0),
            on_epoch=on_epoch,
        )
        for number, net in enumerate(networks)
    ]
    logits = torch.cat([head_logits(net, data.test.x) for net in networks])
    if save_to is not None:
        fxsplit.save(networks[0], save_to)  # pyright: ignore[reportArgumentType] (save refuses anything else)
    return Run(
        key=method.key,
        label=method.label,
        seed=seed,
        plan=plan,
        metrics=headline(evaluate(logits, data.test.y)),
        seconds=sum(history.seconds for history in histories),
        logits=logits.numpy(),
        curves=_curves(histories, plan, data.validation.y),
        updates=[
            {"step": update.step, "component": component, "replaced": count}
            for history in histories
            for update in history.updates
            for component, count in update.components.items()
        ],
        layers=[
            (path, int(mask.sum()) / mask.numel()) for net in networks for path, mask in sparsity.masks_of(net).items()
        ],
    )


def _curves(histories: list[History], plan: Plan, labels: Tensor) -> list[Row]:
    rows = []
    for epoch in range(plan.epochs):
        logits = torch.cat([history.validation[epoch] for history in histories])
        voted = mean_probability(logits)
        rows.append(
            {
                "epoch": epoch + 1,
                "training_flops_ratio": plan.ratio * (epoch + 1) / plan.epochs,
                "train_loss": sum(history.losses[epoch] for history in histories) / len(histories),
                "validation_accuracy": (voted.argmax(-1) == labels).double().mean().item(),
                "validation_nll": nn.functional.nll_loss(voted, labels).item(),
                "validation_disagreement": diversity(logits, labels)["disagreement"],
            }
        )
    return rows
