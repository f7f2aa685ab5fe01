"""Training one network: the loop a user would write, with the rewiring engine attached to the optimizer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

import fxsplit
from recipes._settings import Hyper
from recipes.data import Augment, Data, batches, steps_per_epoch
from recipes.evaluation import head_logits

Callback = Callable[[Any], None]
Attach = Callable[[nn.Module, Optimizer, int, Callback], Any]


@dataclass
class History:
    """What is left of one training besides the network.

    Args:
        losses: Mean training loss of each epoch.
        validation: Logits `[M, N, K]` on the validation set after each epoch.
        updates: The `Rewiring` of each topology update.
        steps: Optimizer steps taken.
        seconds: Wall time of the training steps; evaluation is not in it.
    """

    losses: list[float] = field(default_factory=list)
    validation: list[Tensor] = field(default_factory=list)
    updates: list[Any] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0


def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean over heads of the cross-entropy (NeuroTrails, sec. 3); of a plain network, its cross-entropy."""
    criterion = nn.functional.cross_entropy
    return fxsplit.head_loss(net, criterion, x, y) if isinstance(net, fxsplit.SplitModel) else criterion(net(x), y)


def train(
    net: nn.Module,
    data: Data,
    hyper: Hyper,
    epochs: int,
    seed: int,
    *,
    augment: Augment | None = None,
    attach: Attach | None = None,
    on_epoch: Callable[[], object] = lambda: None,
) -> History:
    """Train a network in place for a fixed number of epochs; the last epoch is the result, nothing is selected.

    Args:
        net: What to train; left in training mode.
        data: Its training part is fitted, its validation part evaluated after each epoch.
        hyper: Optimizer settings and batch size.
        epochs: Passes over the training part.
        seed: Order of the examples, augmentation, and whatever randomness the network has.
        augment: Applied to each training batch.
        attach: Attaches a rewiring engine: called with the network, its optimizer, the number of steps to come and what
            is to hear of each update.
        on_epoch: Called after each epoch.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * steps_per_epoch(len(data.train.y), hyper.batch_size)
    optimizer = SGD(net.parameters(), hyper.lr, momentum=hyper.momentum, nesterov=True, weight_decay=hyper.weight_decay)
    schedule = CosineAnnealingLR(optimizer, T_max=steps)
    history = History(steps=steps)
    if attach is not None:
        attach(net, optimizer, steps, history.updates.append)
    net.train()
    for _ in range(epochs):
        started = time.perf_counter()
        losses = []
        for x, y in batches(data.train, hyper.batch_size, generator, augment):
            loss = loss_of(net, x, y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.detach())
        history.seconds += time.perf_counter() - started
        history.losses.append(torch.stack(losses).mean().item())
        history.validation.append(head_logits(net, data.validation.x))
        on_epoch()
    return history
