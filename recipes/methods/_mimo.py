"""MIMO: several members inside of one network (Havasi et al. 2021, arXiv 2010.06610)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fxsplit
from recipes._errors import RecipeError
from recipes.methods._method import Criterion, MakeNet, Method, seeded


@dataclass(frozen=True)
class Mimo(Method):
    """One network with M inputs side by side and M predictions.

    Args:
        members: Number of members, M.
        repeat: How often each example comes in a batch, for every member (the paper's r).
        shared: Share of a batch in which all members see the same example (the paper's rho).
        vote: How predictions are averaged.
    """

    members: int = 3
    repeat: int = 4
    shared: float = 0.0
    vote: str = "prob"
    key = "mimo"

    def __post_init__(self) -> None:
        for name in ("members", "repeat"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.shared <= 1:
            raise RecipeError(f"shared must lie in [0, 1], got {self.shared}.")

    @property
    def label(self) -> str:
        """``MIMO (M=3)``, with rho where it isn't zero."""
        rho = f", rho={self.shared:g}" if self.shared else ""
        return f"MIMO (M={self.members}{rho})"

    @property
    def heads(self) -> int:
        """Number of members."""
        return self.members

    @property
    def repetitions(self) -> int:
        """How many rows the network sees for one example."""
        return self.repeat

    def network(self, make: MakeNet, example: Any, seed: int, number: int = 0) -> nn.Module:
        """Make first and last layer of a model M times as wide."""
        return fxsplit.mimo(seeded(make, seed), self.members, vote=self.vote, seed=seed, example=example)

    def batch(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Give each member its own order of the examples.

        Raises:
            RecipeError: The batch is too small for that.
        """
        try:
            return fxsplit.mimo_batch(x, y, self.members, self.shared, self.repeat, generator)
        except fxsplit.InputError as error:
            raise RecipeError(f"{error} Set a larger batch_size.") from error

    def loss(self, net: nn.Module, criterion: Criterion, x: Any, y: Tensor) -> Tensor:
        """Return the sum over members, as in the paper."""
        return self.members * super().loss(net, criterion, x, y)


def mimo(members: int, repeat: int = 4, shared: float = 0.0) -> Mimo:
    """One network with several inputs and predictions."""
    return Mimo(members, repeat, shared)
