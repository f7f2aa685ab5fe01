"""Optimizers as settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from recipes._errors import RecipeError
from recipes._require import are_numbers, require


class OptimizerSettings(Protocol):
    """What makes an optimizer from parameter groups."""

    lr: float

    def make(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Make the optimizer; a group's ``lr_factor`` scales the learning rate."""
        ...


@dataclass(frozen=True)
class Sgd:
    """SGD with momentum.

    Args:
        lr: Learning rate before any schedule.
        momentum: Momentum.
        weight_decay: L2, on every parameter.
        nesterov: Whether the momentum is of Nesterov's kind.

    Raises:
        RecipeError: A setting is out of its range, or Nesterov's momentum is 0.
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check(self.lr, self.weight_decay)
        require(0 <= self.momentum < 1, "momentum", "be at least 0 and below 1", self.momentum)
        if self.nesterov and not self.momentum:
            raise RecipeError("momentum must be above 0 with nesterov, got 0. Set nesterov=false, or a momentum.")

    def make(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Make the optimizer."""
        return torch.optim.SGD(
            _scaled(groups, self.lr),
            self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


@dataclass(frozen=True)
class Adam:
    """Adam, or AdamW where weights decay.

    Args:
        lr: Learning rate before any schedule.
        betas: Decay of the moments.
        weight_decay: Decoupled decay, on every parameter.

    Raises:
        RecipeError: A setting is out of its range.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check(self.lr, self.weight_decay)
        two = len(self.betas) == 2 and are_numbers(self.betas) and all(0 <= beta < 1 for beta in self.betas)
        require(two, "betas", "be two numbers, at least 0 and below 1", self.betas)

    def make(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Make the optimizer."""
        return torch.optim.AdamW(_scaled(groups, self.lr), self.lr, betas=self.betas, weight_decay=self.weight_decay)


def _check(lr: float, weight_decay: float) -> None:
    require(0 < lr < float("inf"), "lr", "be positive", lr)
    require(0 <= weight_decay < float("inf"), "weight_decay", "be at least 0", weight_decay)


def _scaled(groups: list[dict[str, Any]], lr: float) -> list[dict[str, Any]]:
    # The base rate stays in the group, so that a schedule is a pure function of the step.
    made = []
    for group in groups:
        base = lr * group.get("lr_factor", 1.0)
        made.append({**{k: v for k, v in group.items() if k != "lr_factor"}, "lr": base, "base_lr": base})
    return made
